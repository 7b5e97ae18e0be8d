"""How fast a tile store is read, in tiles per second, beside what training at 64 px consumes on the same machine in
the same run.

    python benchmarks/tiles.py [--quick]

Reads tiles at 64 px in random order: one by one, by the batches that training uses (with orientations, as tensors),
and through a DataLoader with two workers; then from files instead of the store; then trains StyleEx (channel_base
2048, channel_max 128, batch 16) for a few steps. The last line is one JSON object."""
import argparse, json, statistics, tempfile, time
from pathlib import Path
import numpy as np, torch
from histoxplaining.classifier import Classifier, backbone
from histoxplaining.images import read_image, resize
from histoxplaining.losses import perceptual
from histoxplaining.synthetic import write_folder
from histoxplaining.tiles import Batches, TileStore
from histoxplaining.training import TrainConfig, TrainState, resolve, train_step


def per_second(n, f, runs=3):
    "Median of `n` things per second over some runs, after one to warm up."
    times = []
    for _ in range(runs + 1):
        t = time.perf_counter(); f(); times.append(time.perf_counter() - t)
    return n / statistics.median(times[1:])


def training(store, steps, disc):
    "Tiles per second that training consumes."
    cfg = resolve(TrainConfig(data=str(store.path), kimg=1000, channel_base=2048, channel_max=128, device='cpu',
        arch='StyleEx', ae_kimg=0, disc=disc), 64)
    clf = Classifier(backbone('tf_efficientnet_lite0', 2), store.classes, 64, (.5,) * 3, (.5,) * 3).frozen()
    st, dist, batches = TrainState(cfg, 2), perceptual(cfg.perceptual), Batches(store, cfg.batch, seed=0)
    for _ in range(2): train_step(st, cfg, clf, dist, *next(batches))
    t = time.perf_counter()
    for _ in range(steps): train_step(st, cfg, clf, dist, *next(batches))
    return steps * cfg.batch / (time.perf_counter() - t)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='500 tiles and 4 steps instead of 2000 and 16')
    p.add_argument('--threads', type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    n, steps = (500, 4) if a.quick else (2000, 16)
    with tempfile.TemporaryDirectory() as tmp:
        # as pictures come: larger than what training reads
        folder = write_folder(Path(tmp)/'tiles', n, 128, seed=0)
        t = time.perf_counter()
        store = TileStore.create(folder, Path(tmp)/'t.lmdb', size=64, val=0)
        out = dict(built=n / (time.perf_counter() - t))
        order, files = np.random.default_rng(0).permutation(n), store.names
        out['one by one'] = per_second(n, lambda: [store[int(i)] for i in order])
        def through(batches): [next(batches) for _ in range(n // 16)]
        batches = Batches(store, 16, seed=0)
        out['batches'] = per_second(n // 16 * 16, lambda: through(batches))
        loader = torch.utils.data.DataLoader(store, 16, shuffle=True, num_workers=2, persistent_workers=True)
        out['DataLoader, 2 workers'] = per_second(n, lambda: sum(1 for _ in loader))
        del loader
        out['from files, resized'] = per_second(n, lambda: [resize(read_image(folder/files[i]), 64) for i in order],
            runs=1)
        out['training consumes'] = training(store, steps, 'projected')
    out['ratio'] = out['batches'] / out['training consumes']
    for k, v in out.items(): print(f'{k:22s} {v:10.1f}' + (' tiles/s' if k != 'ratio' else ' x'))
    print(json.dumps({k: round(v, 2) for k, v in out.items()}))


if __name__ == '__main__': main()
