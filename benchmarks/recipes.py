"""Training recipes at equal thousands of images: which adversary follows the autoencoder, and whether the autoencoder
should come first.

    python benchmarks/recipes.py STORE CLASSIFIER --work FOLDER [--ae_kimg 4] [--kimg 8] [--seeds 0,1] [--only NAME
        ...] [--out FILE.json]

Every recipe sees `kimg` thousand tiles, with the same seed, store and classifier. Those that begin as an autoencoder
share that part, and their adversary starts from its weights. Measured at the end: 1,000 samples in other tiles'
layouts against 1,000 training tiles in two feature spaces, per class too, held-out reconstructions, diversity, and
the probe that tells encoded from mapped codes. What exists in --work is kept, so that an interrupted run goes on.
`seconds` are of the training, its autoencoder included, on one thread."""
import argparse, json
from pathlib import Path
import torch
from histoxplaining.checkpoints import RunDir
from histoxplaining.classifier import Classifier
from histoxplaining.files import write_json
from histoxplaining.training_step import TrainConfig
from histoxplaining.training import train

SETTINGS = dict(channel_base=2048, channel_max=128, batch=16, kl_ramp=.1, kl_weight=1., l1_weight=2., feat_swap=.25,
    metrics_n=1000)
RECIPES = {
    'autoencoder, then projected': dict(disc='projected'),
    'autoencoder, then plain':     dict(disc='stylegan2'),
    'autoencoder, then both':      dict(disc='both'),
    'projected from the start':    dict(disc='projected', ae_kimg=0),
}
KEPT = ('kid/', 'fd64/', 'val_', 'diversity/', 'probe_auc')


def trained(path, kimg, clf, **kw):
    "Train, or go on; the newest state."
    state = RunDir(path).latest() if path.exists() else None
    if state is None or state['nimg'] < kimg * 1000:
        train(TrainConfig(**dict(kimg=kimg, snap_kimg=kimg) | SETTINGS | kw), path, clf, ckpt=path if state else None)
        state = RunDir(path).latest()
    if state['nimg'] < kimg * 1000:
        raise SystemExit(f'{path}: stopped at {state["nimg"]} images; the same command goes on')
    return state


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('store')
    p.add_argument('classifier')
    p.add_argument('--work', type=Path, required=True)
    p.add_argument('--ae_kimg', type=float, default=4)
    p.add_argument('--kimg', type=float, default=8)
    p.add_argument('--seeds', default='0,1')
    p.add_argument('--only', nargs='+', default=list(RECIPES), choices=list(RECIPES))
    p.add_argument('--out')
    a = p.parse_args()
    torch.set_num_threads(1)
    a.work.mkdir(parents=True, exist_ok=True)
    clf, rows = Classifier.load(a.classifier), []
    for seed in map(int, a.seeds.split(',')):
        ae = a.work/f'ae{seed}'
        before = trained(ae, a.ae_kimg, clf, data=a.store, arch='autoencoder', seed=seed)['seconds']
        for k, (name, kw) in enumerate(RECIPES.items()):
            if name not in a.only: continue
            alone = 'ae_kimg' in kw
            kimg = a.kimg if alone else a.kimg - a.ae_kimg
            run = a.work/f'r{k}_{seed}'
            seconds = trained(run, kimg, clf, data=a.store, seed=seed, metrics_kimg=kimg, warm_kimg=.5,
                **({} if alone else dict(init=str(ae), ae_kimg=0)) | kw)['seconds']
            row = [r for r in RunDir(run).read_log() if r.get('snapshot')][-1]
            rows.append(dict(recipe=name, seed=seed, kimg=a.kimg, seconds=round(seconds + (0 if alone else before)),
                **{c: round(v, 4) for c, v in row.items() if c.startswith(KEPT)}))
            print(json.dumps(rows[-1]), flush=True)
            if a.out: write_json(a.out, dict(settings=SETTINGS, ae_kimg=a.ae_kimg, kimg=a.kimg, threads=1, rows=rows))


if __name__ == '__main__': main()
