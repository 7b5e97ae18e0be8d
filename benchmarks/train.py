"""Training speed at 64 px (channel_base 2048, channel_max 128, batch 16) beside a fixed unit of convolution work, in
one run.

    python benchmarks/train.py [--quick]

Prints images per second of each mode, in one process on two threads and in two processes on one thread each (as
`torchrun --nproc_per_node=2` starts them), then where the time of a step goes, and as the last line one JSON object.

"stylegan2, ADA" has the paper's pipe `bgc` at p = 0.5, where 15 of 16 pictures are warped (at p = 0 augmentation
costs nothing). `ref_img_s` is what a well-known public StyleGAN2-ADA implementation trains per second with ADA on a
machine that does one unit of work in the time measured here (2.9 images per unit, measured side by side on one such
machine); `img_s` and `ratio` are our stylegan2 mode with ADA in the faster of the two ways; `styleex_over_stylegan2`
compares the preset's StyleEx mode with stylegan2 mode, both with what they have by default. `conv_share` is the rate
of convolution arithmetic while training, relative to the fastest of the convolutions of the unit alone."""
import argparse, json, os, resource, statistics, subprocess, sys, tempfile, time
from collections import defaultdict
from pathlib import Path
import torch, torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from histoxplaining import training_step as steps
from histoxplaining.classifier import Classifier, backbone
from histoxplaining.losses import perceptual
from histoxplaining.distributed import rank, together, world
from histoxplaining.training_step import TrainConfig, TrainState, resolve, train_step
from histoxplaining.synthetic import write_folder
from histoxplaining.tiles import Batches, TileStore

LAYERS = [(32, 32, 64), (32, 32, 64), (64, 32, 32), (64, 64, 32), (64, 64, 32), (128, 64, 16), (128, 128, 16),
    (128, 128, 16), (128, 128, 8), (128, 128, 8), (128, 128, 4)]
REF_UNITS = 2.9
MODES = {'stylegan2': dict(arch='stylegan2', aug='none'),
    'stylegan2, ADA': dict(arch='stylegan2', aug='ada', aug_pipe='bgc', p=.5), 'autoencoder': dict(arch='autoencoder'),
         'StyleEx': dict(arch='StyleEx', ae_kimg=0),
             'StyleEx, plain disc': dict(arch='StyleEx', disc='stylegan2', aug='none', ae_kimg=0),
             'StyleEx, both': dict(arch='StyleEx', disc='both', aug='none', ae_kimg=0)}


def unit(runs):
    """Median seconds of forward and backward through the 3x3 convolutions of these networks, batch 16, and the best
    rate of one of them in FLOP/s."""
    g = torch.Generator().manual_seed(0)
    data = [(torch.randn(16, i, r, r, generator=g).requires_grad_(),
        torch.randn(o, i, 3, 3, generator=g).requires_grad_()) for i, o, r in LAYERS]
    times, best = [], [9e9] * len(data)
    for k in range(runs + 3):
        t = time.perf_counter()
        for j, (x, w) in enumerate(data):
            s = time.perf_counter()
            F.conv2d(x, w, padding=1).sum().backward()
            best[j] = min(best[j], time.perf_counter() - s)
        if k >= 3: times.append(time.perf_counter() - t)
    return statistics.median(times), max(3 * 2 * 16 * 9 * i * o * r * r / s for (i, o, r), s in zip(LAYERS, best))


class Flops(TorchDispatchMode):
    "Counts what PyTorch knows the arithmetic of: convolutions and matrix products."
    n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        known = flop_registry.get(func._overloadpacket)
        if known: self.n += known(*args, **kwargs or {}, out_val=out)
        return out


def prepared(store, clf, mode):
    kw = dict(MODES[mode])
    p = kw.pop('p', 0.)
    cfg = resolve(TrainConfig(data=str(store.path), kimg=1000, channel_base=2048, channel_max=128, device='cpu', **kw),
        64)
    st = TrainState(cfg, len(store.classes))
    if st.ada is not None: st.ada.p = p
    dist = None if cfg.arch == 'stylegan2' else perceptual(cfg.perceptual)
    batches = Batches(store, cfg.batch // world(), seed=0, rank=rank(), world=world())
    step = lambda: train_step(st, cfg, None if cfg.arch == 'stylegan2' else clf, dist, *next(batches))
    for _ in range(2): step()
    st.nimg = 0
    return step


def step_seconds(store, clf, mode, n):
    "Mean seconds per step, over whole lazy-regularisation cycles of 16 steps; ADA starts at p."
    step = prepared(store, clf, mode)
    t = time.perf_counter()
    for _ in range(n): step()
    return (time.perf_counter() - t) / n


def phases(store, clf, mode, n=16):
    "Seconds per step of each part of a step, and FLOP of its convolutions."
    spent = defaultdict(float)
    def timed(name, fn):
        def wrapper(*a, **kw):
            t = time.perf_counter()
            out = fn(*a, **kw)
            spent[name(a) if callable(name) else name] += time.perf_counter() - t
            return out
        return wrapper
    names = {'generator_terms': 'G, E: terms', 'gradient_norm_weighted': 'G, E: gradients at the pictures',
        'discriminator_terms': 'D: terms', 'path_length_term': 'path length: terms', 'r1_penalty': 'R1: penalty',
        'update_ema': 'moving averages'}
    kept = {k: getattr(steps, k) for k in names} | {'add': steps._Phase.add, 'descend': steps._Phase.descend}
    step = prepared(store, clf, mode)
    try:
        for k, v in names.items(): setattr(steps, k, timed(v, kept[k]))
        steps._Phase.add = timed(lambda a: f"{', '.join(a[0].names)}: gradients of the weights", kept['add'])
        steps._Phase.descend = timed('optimisers', kept['descend'])
        t = time.perf_counter()
        for _ in range(n): step()
        whole = time.perf_counter() - t
    finally:
        for k in names: setattr(steps, k, kept[k])
        steps._Phase.add, steps._Phase.descend = kept['add'], kept['descend']
    with Flops() as c:
        for _ in range(16): step()
    spent['the rest (batch, classifier of the tiles, bookkeeping)'] = whole - sum(spent.values())
    return {k: v / n for k, v in spent.items()}, c.n / 16


def in_two_processes(tmp, mode, n):
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', __file__, '--worker',
        str(tmp), mode, str(n)]
    out = subprocess.run(cmd, capture_output=True, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    if out.returncode: raise SystemExit(out.stderr[-2000:])
    return float(out.stdout.split('seconds')[1])


def speeds(store, clf, tmp, modes, n):
    "Seconds of a step in one process and in two, by mode."
    one, two = {}, {}
    for mode in modes:
        one[mode] = step_seconds(store, clf, mode, n)
        if mode in ('stylegan2', 'stylegan2, ADA', 'StyleEx'): two[mode] = in_two_processes(tmp, mode, n)
        print(f'{mode:20s} one process {one[mode]:.3f} s/step {16 / one[mode]:5.1f} img/s' +
            (f'   two processes {two[mode]:.3f} s/step {16 / two[mode]:5.1f} img/s' if mode in two else ''), flush=True)
    return one, two


def where_time_goes(store, clf, mode, seconds, peak):
    "Print the parts of a step. Gives the share of the fastest layer's speed."
    parts, flops = phases(store, clf, mode)
    share = flops / seconds / peak
    print(f'\n{mode}, one process: {flops / 1e9:.1f} GFLOP of convolutions a step, {share:.0%} of the '
        f'{peak / 1e9:.0f} GFLOP/s that the fastest layer reaches alone')
    for k, v in sorted(parts.items(), key=lambda kv: -kv[1]): print(f'  {v:.3f} s  {v / sum(parts.values()):4.0%}  {k}')
    return share


def summary(one, two, seconds, share):
    best = {k: min(one[k], two.get(k, 9e9)) for k in one}
    ref = REF_UNITS / seconds
    return {'img_s': round(16 / best['stylegan2, ADA'], 2), 'ref_img_s': round(ref, 2),
        'ratio': round(16 / best['stylegan2, ADA'] / ref, 3),
        'ratio_one_process': round(16 / one['stylegan2, ADA'] / ref, 3),
        'ratio_plain': round(16 / best['stylegan2'] / ref, 3),
        'styleex_img_s': round(16 / best['StyleEx'], 2),
        'styleex_over_stylegan2': round(best['StyleEx'] / best['stylegan2'], 2),
        'peak_mb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        'conv_share': {k: round(v, 2) for k, v in share.items()},
        'one_process': {k: round(16 / v, 1) for k, v in one.items()},
        'two_processes': {k: round(16 / v, 1) for k, v in two.items()}}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true',
        help='one cycle of 16 steps per mode instead of two, and only the modes that the last line needs')
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--worker', nargs=3, help=argparse.SUPPRESS)
    a = p.parse_args()
    def get_clf(store):
        return Classifier(backbone('tf_efficientnet_lite0@16', 2), store.classes, 64, (.5,) * 3,
            (.5,) * 3).frozen()
    if a.worker:
        torch.set_num_threads(1)
        with together():
            store = TileStore(Path(a.worker[0])/'t.lmdb')
            secs = step_seconds(store, get_clf(store), a.worker[1], int(a.worker[2]))
            if rank() == 0: print('seconds', secs)
        return
    torch.set_num_threads(a.threads)
    with tempfile.TemporaryDirectory() as tmp:
        store = TileStore.create(write_folder(Path(tmp)/'tiles', 64, 64, seed=0), Path(tmp)/'t.lmdb', size=64, val=0)
        clf, n, runs = get_clf(store), 16 if a.quick else 32, 5 if a.quick else 15
        before, peak = unit(runs)
        one, two = speeds(store, clf, tmp, MODES if not a.quick else ('stylegan2', 'stylegan2, ADA', 'StyleEx'), n)
        after, peak2 = unit(runs)
        share = {mode: where_time_goes(store, clf, mode, one[mode], max(peak, peak2))
            for mode in ('stylegan2, ADA', 'StyleEx')}
    print(json.dumps(summary(one, two, (before + after) / 2, share)))


if __name__ == '__main__': main()
