"""How fast an autoencoder learns to reconstruct, by its layout code: learnt alone, or with the short way that begins at
principal components of squares of pixels (`feat_patch`).

    python benchmarks/layout_codes.py STORE CLASSIFIER --work FOLDER [--kimg 2] [--seeds 0] [--only NAME ...]
        [--out FILE.json]

Every code is learnt from fresh weights with the same seed, store and classifier, on one thread; measured on held-
out tiles with the averaged networks. `linear` is the code without any network: as many principal components of
standardised squares, mean and contrast of the tile's colours given. What exists in --work is kept, so that an
interrupted run goes on. Last line: JSON with all rows."""
import argparse, json
from pathlib import Path
import torch, torch.nn.functional as F
from recipes import trained
from histoxplaining.checkpoints import RunDir
from histoxplaining.classifier import Classifier
from histoxplaining.files import write_json
from histoxplaining.losses import perceptual
from histoxplaining.networks import standardised
from histoxplaining.tiles import TileStore

SETTINGS = dict(arch='autoencoder', kl_weight=.5, kl_ramp=1/3, feat_drop=0., feat_swap=0., log_kimg=.5, snap_kimg=.5)


def codes(size):
    "Codes that are compared, as settings: name -> (side, channels, short way)."
    s = size // 4
    return {f'{s}x{s}x8': (s, 8, False), f'{s}x{s}x8, patches': (s, 8, True), f'{s}x{s}x4, patches': (s, 4, True),
        f'{s // 2}x{s // 2}x24': (s // 2, 24, False), f'{s // 2}x{s // 2}x24, patches': (s // 2, 24, True),
        f'{s // 2}x{s // 2}x16, patches': (s // 2, 16, True)}


@torch.no_grad()
def linear(store, side, channels):
    "L1 and perceptual distance of as many principal components, on 128 held-out tiles."
    fit, x = (s.tensors(list(range(0, len(s), max(1, len(s) // n)))[:n])[0] for s, n in ((store.train, 512),
        (store.val, 128)))
    k = store.size // side
    squares = lambda v: F.unfold(standardised(v), k, stride=k).transpose(1, 2)
    p = squares(fit).reshape(-1, 3 * k * k)
    axes = torch.linalg.svd(torch.cov((p - p.mean(0)).T))[0][:, :channels]
    q = (squares(x) - p.mean(0)) @ axes @ axes.T + p.mean(0)
    r = F.fold(q.transpose(1, 2), store.size, k, stride=k)
    r = r * x.std((2, 3), keepdim=True).clamp_min(.05) + x.mean((2, 3), keepdim=True)
    dist = perceptual()
    return dict(l1=(r - x).abs().mean().item(),
        perceptual=torch.cat([dist(a, b) for a, b in zip(r.split(32), x.split(32))]).mean().item())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('store')
    p.add_argument('classifier')
    p.add_argument('--work', type=Path, required=True)
    p.add_argument('--kimg', type=float, default=2)
    p.add_argument('--seeds', default='0')
    p.add_argument('--only', nargs='+', default=None)
    p.add_argument('--out')
    a = p.parse_args()
    torch.set_num_threads(1)
    store, clf, rows = TileStore(a.store), Classifier.load(a.classifier), []
    unknown = set(a.only or ()) - set(codes(store.size))
    if unknown: p.error(f"--only {', '.join(unknown)}: expected some of {'; '.join(codes(store.size))}")
    for name, (side, channels, patch) in codes(store.size).items():
        if a.only and name not in a.only: continue
        if patch:
            rows.append(dict(code=name, seed='linear', numbers=side**2 * channels,
                **{k: round(v, 4) for k, v in linear(store, side, channels).items()}))
            print(json.dumps(rows[-1]), flush=True)
        for seed in map(int, a.seeds.split(',')):
            run = a.work/f'{name.replace(", ", "_")}_{seed}'
            trained(run, a.kimg, clf, data=a.store, seed=seed, feat_res=side, feat_channels=channels,
                feat_patch=patch, **SETTINGS)
            log = RunDir(run).read_log()
            looks = [r for r in log if r.get('snapshot')]
            rows.append(dict(code=name, seed=seed, numbers=side**2 * channels,
                seconds=round(max(r.get('seconds', 0) for r in log)), l1=round(looks[-1]['val_l1'], 4),
                **{f'perceptual_{r["nimg"] / 1000:.1f}': round(r['val_perceptual'], 4) for r in looks if r['nimg']}))
            print(json.dumps(rows[-1]), flush=True)
    if a.out: write_json(a.out, rows)
    print(json.dumps(rows))


if __name__ == '__main__': main()
