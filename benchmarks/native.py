"""Answers at the model's size and at the tile's own: do they hold, do others agree, do they look like the other class?

    python benchmarks/native.py MODEL STORE [--oracle FILE] [--classifier FILE] [--composer FILE] [--n 200]
        [--picture F.jpg] [--out F.json]

STORE holds tiles of four times the model's size; those that it holds out are explained, n a class. Rows: the answer at
the model's size; the same enlarged; composed. Kernel distance on Lite0 features at 224 px, to training tiles: `new/C`
of answers that go to class C, and `own/C` of unedited pictures (reconstructed, or redrawn) of class C, which is what
drawing alone costs. The last line is JSON."""
import argparse, json, time
from collections import Counter
from dataclasses import replace
import numpy as np
from PIL import Image

from histoxplaining.checkpoints import load_network
from histoxplaining.classifier import Classifier
from histoxplaining.composer import FACTOR, Composer
from histoxplaining.counterfactual import explain
from histoxplaining.evaluation import Pairs, measure
from histoxplaining.explainer import Explainer
from histoxplaining.features import features
from histoxplaining.files import write_json
from histoxplaining.images import grid
from histoxplaining.metrics import FeatureSet, kid
from histoxplaining.tiles import TileStore

SHOWN = ('answered', 'flip_0.9', 'flip_0.9_views', 'flip_0.9_jpeg', 'oracle_says_target', 'oracle', 'area')


def held_out(store, n):
    "So many held-out tiles of each class, evenly."
    val, some = store.val, []
    for k in range(len(val.classes)):
        of = np.flatnonzero(np.asarray(val.labels) == k)
        some += of[np.linspace(0, len(of) - 1, min(n, len(of))).astype(int)].tolist()
    return [val[i][0] for i in some]


def sized(pictures, side):
    "Pictures of one size, as an image viewer shows them."
    return np.stack([p if len(p) == side else np.asarray(Image.fromarray(p).resize((side, side), Image.BICUBIC))
        for p in pictures])


def pairs_of(cfs, name, side):
    "Results as pairs of one size."
    asked = [c for c in cfs if c.source != c.target]
    index = asked[0].classes.index
    return Pairs(name, tuple(asked[0].classes), sized([c.original for c in asked], side),
        sized([c.counterfactual if c.success else c.reconstruction for c in asked], side),
        *(np.array([index(getattr(c, k)) for c in asked]) for k in ('source', 'target')),
        np.array([c.success for c in asked]), sized([c.reconstruction for c in asked], side),
        [c.reason for c in asked])


def distances(pairs, known, f):
    "Kernel distance by class: of answers to the class they go to, and of what they start from to its own."
    out = {}
    for name, pictures, of in (('new', pairs.counterfactual, pairs.target), ('own', pairs.start, pairs.source)):
        for k in sorted(set(of[pairs.found].tolist())):
            some = FeatureSet(f(pictures[pairs.found & (of == k)]), f)
            out[f'{name}/{pairs.classes[k]}'] = float(kid(known[k], some, subsets=50))
    return out


def training_tiles(store, f, n=1000):
    "Features of so many training tiles of each class."
    train, labels = store.train, np.asarray(store.train.labels)
    pick = lambda k: np.flatnonzero(labels == k)[:n]
    return [FeatureSet(f(np.stack([train[int(i)][0] for i in pick(k)])), f) for k in range(len(train.classes))]


def row(name, pairs, clf, oracle, store, known, f, seconds):
    found = measure(pairs, clf, oracle=oracle, held=store.val, boots=1)
    out = dict(name=name, n=len(pairs), seconds=seconds, **{m.record['metric']: float(m) for m in found
        if m.record['metric'] in SHOWN}, **distances(pairs, known, f))
    print({k: round(v, 3) if isinstance(v, float) else v for k, v in out.items()}, flush=True)
    return out


def picture(path, tiles, cfs, n=8, side=128):
    "Tile, its counterfactual at the model's size, the tile redrawn, the answer: a row each, both directions."
    rows = []
    for source in sorted({c.source for c in cfs}):
        some = [i for i, c in enumerate(cfs) if c.source == source and c.success]
        some = [some[i] for i in np.linspace(0, len(some) - 1, min(n, len(some))).astype(int)]
        small = [cfs[i].small for i in some]
        for v in ([tiles[i] for i in some], small, [cfs[i].reconstruction for i in some],
                [cfs[i].counterfactual for i in some]):
            rows.append(np.stack([np.asarray(Image.fromarray(p).resize((side, side), Image.LANCZOS)) for p in v]))
    Image.fromarray(grid(np.concatenate(rows), n)).save(path, quality=88)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('model'); p.add_argument('store')
    p.add_argument('--oracle', help='a classifier of another architecture')
    p.add_argument('--classifier', help="explain this one instead of the model's own")
    p.add_argument('--composer', help="its weights, in place of the model's own")
    p.add_argument('--n', type=int, default=200, help='tiles per class')
    p.add_argument('--views', type=int, default=1)
    p.add_argument('--picture'); p.add_argument('--out')
    a = p.parse_args()
    ex, store = Explainer.open(a.model), TileStore(a.store)
    if a.composer: ex.composer = load_network(Composer, a.composer)
    clf = Classifier.load(a.classifier).frozen() if a.classifier else None
    oracle, f = Classifier.load(a.oracle).frozen() if a.oracle else None, features('lite0', size=224)
    tiles, rows, took, seconds = held_out(store, a.n), [], {}, {}
    for native in (False, True):
        begin = time.perf_counter()
        took[native] = explain(ex, tiles, native=native, views=a.views, classifier=clf)
        seconds[native] = (time.perf_counter() - begin) / len(tiles)
    # one that did not hold at the size of its tile is no composed answer
    reasons = Counter((c.smaller or c.reason).code for c in took[True] if not c.native and c.source != c.target)
    took[True] = [replace(c, success=False, reason=c.smaller) if c.smaller else c for c in took[True]]
    known = training_tiles(store, f)
    for name, native, side in (("model's size", False, ex.size), ('enlarged', False, FACTOR * ex.size),
            ('composed', True, FACTOR * ex.size)):
        pairs = pairs_of(took[native], name, side)
        rows.append(row(name, pairs, clf or ex.classifier, oracle, store, known, f, seconds[native]))
    redrawn = float(np.median([c.redrawn for c in took[True] if c.native]))
    print('without an answer, composed:', dict(reasons), f'share that is drawn anew, median: {redrawn:.3f}')
    if a.picture:
        for c, s in zip(took[True], took[False]): c.small = s.counterfactual
        picture(a.picture, tiles, took[True])
    out = dict(rows=rows, reasons=dict(reasons), redrawn=redrawn, nimg=ex.card.get('nimg'), n=len(tiles))
    if a.out: write_json(a.out, out)
    print(json.dumps({r['name']: {k: round(v, 4) for k, v in r.items() if isinstance(v, float)} for r in rows}))


if __name__ == '__main__': main()
