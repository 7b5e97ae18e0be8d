"""What an explanation costs, as a multiple of the floor (one encode, one render, one classification), and whether it
finds as much as an optimisation of w.

    python benchmarks/counterfactual.py [--model FOLDER] [--store STORE] [--n 32] [--threads N] [--quick]

Stages at 64, 128 and 256 px, batch 1 and 32, are those of networks of full size with random weights: their work does
not depend on what they have learnt. The multiple of the floor and the flips are of a trained model on held-out tiles,
both directions: `explain` by default (tiles whose reconstruction is judged as they are; `times_floor_refined` with
those that are refined first), with the class direction, and Adam on w for at most 300 steps (`evaluation.optimised`);
and, of a model with a translator, what pruning leaves of its answers.
Without --model a small autoencoder is trained on synthetic tissue first. Prints tables, and as the last line one JSON
object: times_floor_b32, seconds_256_b1, flip_direction, flip_optimised."""
import argparse, json, os, statistics, tempfile, time
from pathlib import Path
import numpy as np, torch

from histoxplaining.classifier import Classifier, backbone, train_classifier
from histoxplaining.counterfactual import explain
from histoxplaining.evaluation import Question, optimised
from histoxplaining.explainer import Explainer
from histoxplaining.images import from_uint8, resize_batch, to_uint8
from histoxplaining.networks import Encoder, Generator
from histoxplaining.synthetic import write_folder
from histoxplaining.tiles import TileStore
from histoxplaining.training import TrainConfig, train


def timed(f, runs):
    "Median seconds of a call, after one that does not count."
    f()
    out = []
    for _ in range(runs):
        t = time.perf_counter()
        f()
        out.append(time.perf_counter() - t)
    return statistics.median(out)


def times(f, floor, runs):
    """How many times as long a call takes as another one, taken in turns: a machine is not the same from minute to
    minute. Median of so many pairs."""
    return statistics.median(timed(f, 1) / timed(floor, 1) for _ in range(runs))


@torch.no_grad()
def stages(size, batch, runs, channel_base=16384, channel_max=512):
    """Seconds of each stage for networks of random weights, and of the fixed work of one explanation: encode, three
    low-resolution searches, render, classify."""
    torch.manual_seed(0)
    kw = dict(channel_base=channel_base, channel_max=channel_max, feat_channels=8, feat_res=min(size // 4, 32))
    G = Generator(size, 2, **kw)
    E, clf = Encoder(size, G.num_ws, **kw), Classifier(backbone('tf_efficientnet_lite0', 2, pretrained=False),
        ('a', 'b'), size)
    ex = Explainer(G, E, clf, dict(classes=('a', 'b'), name='random'))
    x = torch.rand(batch, 3, size, size) * 2 - 1
    w, feat = ex.encode(x)
    # the smallest picture that has the layout in it
    low = max(size // 8, min(size // 4, 32))
    small = lambda: resize_batch(ex.generate(w, feat, res=low), size)
    out = dict(encode=timed(lambda: ex.encode(x), runs), render=timed(lambda: ex.generate(w, feat), runs),
        classify=timed(lambda: ex.classify(x), runs), low=timed(lambda: ex.classify(small()), runs))
    def work():
        w, feat = ex.encode(x)
        for _ in range(3): ex.classify(resize_batch(ex.generate(w, feat, res=low), size))
        ex.classify(from_uint8(to_uint8(ex.generate(w, feat))))
    return out | dict(fixed=timed(work, runs), floor=sum(out[k] for k in ('encode', 'render', 'classify')))


def small_model(folder, quick):
    "A model to measure on where none is given."
    store = TileStore.create(write_folder(folder/'tiles', 160 if quick else 600, 32, seed=0), folder/'tiles.lmdb',
        size=32)
    clf = train_classifier(store, arch='resnet10t', pretrained=False, epochs=2)
    train(TrainConfig(data=str(store.path), arch='autoencoder', kimg=2 if quick else 20, channel_base=1024,
        channel_max=64, snap_kimg=100), output=folder/'run', classifier=clf, quiet=True)
    return Explainer.from_run(folder/'run'), store


def on_a_model(ex, store, n, runs, steps):
    """Multiple of the floor at batch 32, and flips of direction and optimisation among the tiles that can be asked
    about."""
    val = store.held
    per = [np.flatnonzero(val.labels == c)[:n] for c in range(len(val.classes))]
    tiles = np.stack([val[int(i)][0] for i in np.concatenate(per)])
    # the directions are found here: the model's cost, not a tile's
    cfs = explain(ex, tiles, 'next', method='direction')
    asked = [i for i, c in enumerate(cfs) if c.success or 'stays below' in c.reason or 'limit' in c.reason]
    x = np.resize(tiles[asked], (32, *tiles.shape[1:]))
    with torch.no_grad(): w, feat = ex.encode(x)
    floor = torch.no_grad()(lambda: (ex.encode(x), ex.classify(ex.generate(w, feat))))
    found = [cfs[i] for i in asked]
    index = lambda name: ex.classes.index(name)
    q = Question(ex, ex.classifier, tiles[asked], np.stack([c.reconstruction for c in found]),
        np.array([index(c.source) for c in found]), np.array([index(c.target) for c in found]), .9, None, None,
        steps=steps)
    begin = time.perf_counter()
    best = optimised(q)
    # tiles whose reconstruction is judged as they are
    alone = [i for i, c in enumerate(explain(ex, x)) if not c.refined]
    plain = np.resize(x[alone], x.shape)
    whole, less = ([c for c in explain(ex, tiles[asked], prune=p) if c.success] for p in (False, True))
    kept = [c.kept for c in less if c.kept is not None]
    pruned = {} if not kept else dict(area=float(np.median([c.area for c in whole])),
        area_pruned=float(np.median([c.area for c in less])), style_kept=float(np.mean([k[0] for k in kept])),
        cells_kept=float(np.mean([k[1:].mean() for k in kept])),
        times_floor_pruned=times(lambda: explain(ex, plain, 'next', prune=True), floor, runs))
    return pruned | dict(times_floor_b32=times(lambda: explain(ex, plain, 'next'), floor, 5 * runs),
        times_floor_refined=times(lambda: explain(ex, x, 'next'), floor, runs), refined=1 - len(alone) / len(x),
                times_floor_direction=times(lambda: explain(ex, x, 'next', method='direction', refine=0), floor, runs),
                    floor_per_tile=timed(floor, runs) / 32, n=len(asked), abstained=len(cfs) - len(asked),
                flip_direction=float(np.mean([c.success for c in found])), flip_optimised=float(best.found.mean()),
                    optimised_per_tile=(time.perf_counter() - begin) / len(asked),
                flip_auto=float(np.mean([c.success for c in explain(ex, tiles[asked], 'next')])))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', help='folder of a run or a model')
    p.add_argument('--store', help="tile store; default: the model's")
    p.add_argument('--n', type=int, default=32, help='held-out tiles per class')
    p.add_argument('--steps', type=int, default=300, help='of the optimisation, at most')
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--quick', action='store_true',
        help='fewer repetitions and tiles, no stages at batch 32 above 64 px')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    runs = 3 if a.quick else 7
    print(f'{a.threads} thread(s)\n| px | batch | encode | render | classify | low search | floor | fixed work | times '
        f'floor |\n|---|---|---|---|---|---|---|---|---|')
    for size in (64, 128, 256):
        for batch in (1, 32):
            if batch == 32 and size > 64 and a.quick: continue
            s = stages(size, batch, {(1, size): runs, (32, 256): 1}.get((batch, size), 3))
            print(f'| {size} | {batch} | ' + ' | '.join(f'{s[k]:.3f} s'
                for k in ('encode', 'render', 'classify', 'low', 'floor', 'fixed')) +
                f' | {s["fixed"] / s["floor"]:.2f} |', flush=True)
            if (size, batch) == (256, 1): seconds = s['fixed']
    with tempfile.TemporaryDirectory() as tmp:
        if a.model:
            ex = Explainer.open(a.model)
            store = TileStore(a.store) if a.store else ex.store()
            if ex.reference is None: ex.refer(store.train)
        else: ex, store = small_model(Path(tmp), a.quick)
        m = on_a_model(ex, store, min(a.n, 16) if a.quick else a.n, 3, a.steps)
    print(f'\n{ex}\n' + '\n'.join(f'{k}: {v:.4g}' for k, v in m.items()))
    print(json.dumps({k: round(v, 4) for k, v in dict(times_floor_b32=m['times_floor_b32'],
        times_floor_refined=m['times_floor_refined'], refined=m['refined'],
        times_floor_direction=m['times_floor_direction'], seconds_256_b1=seconds, flip_direction=m['flip_direction'],
        flip_optimised=m['flip_optimised']).items()}))

if __name__ == '__main__': main()
