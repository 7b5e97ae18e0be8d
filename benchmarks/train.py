"""Training speed at 64 px (channel_base 2048, channel_max 128, batch 16) beside a fixed unit of convolution work, in one run.

    python benchmarks/train.py [--quick]

Prints seconds per step of each phase and mode, and as the last line one JSON object. "stylegan2, ADA" has the paper's pipe `bgc` at p = 0.5, where 15 of 16 pictures are warped (at p = 0 augmentation costs nothing).
`ref_img_s` is what a well-known public StyleGAN2-ADA implementation trains per second with ADA on a machine that does one unit of work in the time measured here (2.9 images per unit, measured side by side on one such
machine); `ratio` is our stylegan2 mode with ADA relative to it, `ratio_plain` without. `ada_cost` is what ADA adds to a step."""
import argparse, json, statistics, tempfile, time
from pathlib import Path
import torch, torch.nn.functional as F
from histoxplaining.classifier import Classifier, backbone
from histoxplaining.losses import perceptual
from histoxplaining.synthetic import write_folder
from histoxplaining.tiles import Batches, TileStore
from histoxplaining.training import TrainConfig, TrainState, resolve, train_step

LAYERS = [(32, 32, 64), (32, 32, 64), (64, 32, 32), (64, 64, 32), (64, 64, 32), (128, 64, 16), (128, 128, 16), (128, 128, 16), (128, 128, 8), (128, 128, 8), (128, 128, 4)]
REF_UNITS = 2.9


def unit_seconds(runs):
    "Median seconds of forward and backward through the 3x3 convolutions of these networks, batch 16."
    g = torch.Generator().manual_seed(0)
    data = [(torch.randn(16, i, r, r, generator=g).requires_grad_(), torch.randn(o, i, 3, 3, generator=g).requires_grad_()) for i, o, r in LAYERS]
    times = []
    for k in range(runs + 3):
        t = time.perf_counter()
        for x, w in data: F.conv2d(x, w, padding=1).sum().backward()
        if k >= 3: times.append(time.perf_counter() - t)
    return statistics.median(times)


def step_seconds(store, clf, steps, p=0., **kw):
    "Mean seconds per step of a mode, over whole lazy-regularisation cycles of 16 steps; ADA starts at p."
    cfg = resolve(TrainConfig(data=str(store.path), kimg=1000, channel_base=2048, channel_max=128, device='cpu', **kw), 64)
    st = TrainState(cfg, len(store.classes))
    if st.ada is not None: st.ada.p = p
    dist = None if cfg.arch == 'stylegan2' else perceptual(cfg.perceptual)
    batches = Batches(store, cfg.batch, seed=0)
    for _ in range(2): train_step(st, cfg, clf, dist, *next(batches))
    st.nimg = 0
    t = time.perf_counter()
    for _ in range(steps): train_step(st, cfg, clf, dist, *next(batches))
    return (time.perf_counter() - t) / steps


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--quick', action='store_true', help='one cycle of 16 steps per mode instead of two')
    p.add_argument('--threads', type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    with tempfile.TemporaryDirectory() as tmp:
        store = TileStore.create(write_folder(Path(tmp)/'tiles', 64, 64, seed=0), Path(tmp)/'t.lmdb', size=64, val=0)
        clf = Classifier(backbone('tf_efficientnet_lite0', 2), store.classes, 64, (.5,) * 3, (.5,) * 3).frozen()
        n, before = 16 if a.quick else 32, unit_seconds(5 if a.quick else 15)
        modes = {'stylegan2': dict(arch='stylegan2', aug='none'), 'stylegan2, ADA': dict(arch='stylegan2', aug='ada', aug_pipe='bgc', p=.5), 'autoencoder': dict(arch='autoencoder'), 'StyleEx, plain': dict(arch='StyleEx', disc='stylegan2', aug='none', ae_kimg=0), 'StyleEx, projected': dict(arch='StyleEx', ae_kimg=0), 'StyleEx, both': dict(arch='StyleEx', disc='both', aug='none', ae_kimg=0)}
        secs = {}
        for name, kw in modes.items():
            secs[name] = step_seconds(store, None if kw['arch'] == 'stylegan2' else clf, n, **kw)
            print(f'{name:18s} {secs[name]:.3f} s/step  {16 / secs[name]:5.1f} img/s')
        unit = (before + unit_seconds(5 if a.quick else 15)) / 2
    img = {k: round(16 / v, 2) for k, v in secs.items()}
    print(json.dumps({'img_s': img, 'ref_img_s': round(REF_UNITS / unit, 2), 'ratio': round(img['stylegan2, ADA'] * unit / REF_UNITS, 3), 'ratio_plain': round(img['stylegan2'] * unit / REF_UNITS, 3),
                      'ada_cost': round(secs['stylegan2, ADA'] / secs['stylegan2'] - 1, 3), 'styleex_over_stylegan2': round(secs['StyleEx, projected'] / secs['stylegan2'], 2)}))


if __name__ == '__main__': main()
