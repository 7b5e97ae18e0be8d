"""What a model draws, uncurated: sheets of samples, and of held-out tiles beside their reconstructions, a block of rows
per class; and flips of held-out tiles, rows of tile, reconstruction and answers.

    python benchmarks/sheet.py MODEL STORE [--n 64] [--columns 16] [--kinds samples,reconstructions,flips]
        [--method auto] [--out FOLDER]

Samples are of the seeds 0 to n - 1, tiles the first n of a fixed permutation of the held-out ones of each class. The
last line is JSON: how often the classifier says the class that was asked for, and the share of tiles on which it says
the same of the reconstruction."""
import argparse, json
from functools import partial
from pathlib import Path
import numpy as np
from PIL import Image

from histoxplaining.counterfactual import explain
from histoxplaining.explainer import Explainer
from histoxplaining.images import grid
from histoxplaining.tiles import TileStore


def tiles(store, k, n):
    "The first n held-out tiles of a class in a fixed order."
    own = np.random.default_rng(0).permutation(np.flatnonzero(store.val.labels == k))[:n]
    return np.stack([store.val[int(i)][0] for i in own])


def samples(ex, store, n, columns):
    "Generated pictures, and how often the classifier agrees with what was asked for."
    rows, told = [], {}
    for k, name in enumerate(ex.classes):
        pictures = np.concatenate([ex.render(ex.sample(range(i, min(i + 32, n)), name)) for i in range(0, n, 32)])
        told[name] = float((ex.probabilities(pictures).numpy().argmax(1) == k).mean())
        rows.append(pictures)
    return grid(np.concatenate(rows), columns), told


def reconstructions(ex, store, n, columns):
    "Rows of tiles and rows of what the model makes of them, and how often the decision stays."
    rows, same = [], {}
    for k, name in enumerate(ex.classes):
        real = tiles(store, k, n)
        made = ex.render(ex.code(real))
        p, q = (ex.probabilities(v).numpy().argmax(1) for v in (real, made))
        same[name] = float((p == q).mean())
        for i in range(0, n, columns): rows += [real[i:i + columns], made[i:i + columns]]
    return grid(np.concatenate(rows), columns), same


def flips(ex, store, n, columns, method='auto'):
    """Of each class as many columns as there is room for: tile, reconstruction and answers, one row per class that is
    asked for; the tile itself, faded, where the classifier says so already, and grey where there is no answer."""
    each = columns // len(ex.classes)
    real = np.concatenate([tiles(store, k, each) for k in range(len(ex.classes))])
    rows, answered = [real, ex.render(ex.code(real))], {}
    for name in ex.classes:
        cfs = [c for i in range(0, len(real), 16) for c in explain(ex, list(real[i:i + 16]), name, method=method)]
        asked = [c for c in cfs if c.source != name]
        answered[name] = sum(c.success for c in asked) / len(asked)
        row = np.full_like(real, 225)
        for i, c in enumerate(cfs):
            if c.success: row[i] = c.counterfactual
            elif c.source == name: row[i] = 255 - (255 - real[i]) // 4
        rows.append(row)
    return grid(np.concatenate(rows), len(real)), answered


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('model'); p.add_argument('store')
    p.add_argument('--n', type=int, default=64); p.add_argument('--columns', type=int, default=16)
    p.add_argument('--kinds', default='samples,reconstructions,flips'); p.add_argument('--out', default='.')
    p.add_argument('--method', default='auto', help='of the flips')
    a = p.parse_args()
    ex, store, said = Explainer.open(a.model), TileStore(a.store), {}
    for kind in a.kinds.split(','):
        draw = dict(samples=samples, reconstructions=reconstructions, flips=partial(flips, method=a.method))[kind]
        picture, said[kind] = draw(ex, store, a.n, a.columns)
        Image.fromarray(picture).save(Path(a.out)/f'{Path(a.model).name}_{kind}.jpg', quality=70)
        print(kind, said[kind], flush=True)
    print(json.dumps(said))


if __name__ == '__main__': main()
