"""How near the pictures of a model come to held-out tiles, by how much of the tile is in the code: w alone, w and
layout, refined codes, and edits with and without carried detail.

    python benchmarks/reconstruct.py --model FOLDER [--store STORE] [--n 200] [--refine 20,100] [--no_edits]
        [--out FILE.json]

ms_ssim and the perceptual distance are to the tile; dp is the largest change of any of the explained classifier's
probabilities, and `same` how often it says the same class. An edit (the engine's default, p >= 0.9) is compared
with the tile too: what carrying detail brings. Numbers in the code are counted for one tile. Last line: JSON with
all rows."""

import argparse, json, time
import numpy as np, torch

from histoxplaining.inversion import optimise_code
from histoxplaining.counterfactual import explain
from histoxplaining.explainer import Explainer
from histoxplaining.features import perceptual
from histoxplaining.files import stream, write_json
from histoxplaining.images import from_uint8, to_uint8
from histoxplaining.metrics import ms_ssim
from histoxplaining.tiles import TileStore


class Table:
    "Rows of figures: pictures beside the tiles that they stand for."
    def __init__(self, ex, tiles):
        self.ex, self.tiles, self.x, self.like, self.rows = ex, tiles, from_uint8(tiles), perceptual(), []
        self.p = ex.probabilities(tiles).numpy()

    def add(self, name, pictures, seconds, numbers, some=slice(None), **more):
        y, x = from_uint8(pictures), self.x[some]
        with torch.no_grad(): far = torch.cat([self.like(u, v) for u, v in zip(x.split(64), y.split(64))])
        s, p = ms_ssim(x, y), self.ex.probabilities(pictures).numpy()
        dp = np.abs(p - self.p[some]).max(1)
        key = 'lpips' if type(self.like).__name__ == 'LPIPS' else 'perceptual'
        self.rows.append({'name': name, 'n': len(pictures), s.record['metric']: float(s), key: float(far.mean()),
            'dp': float(dp.mean()), 'dp_above_0.1': float((dp > .1).mean()),
            'same': float((p.argmax(1) == self.p[some].argmax(1)).mean()), 'numbers': numbers, 'seconds': seconds,
            **more})
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in self.rows[-1].items()}, flush=True)


def rendered(ex, w, feat):
    with torch.no_grad():
        return np.concatenate([to_uint8(ex.generate(w[i:i + 64], None if feat is None else feat[i:i + 64]))
            for i in range(0, len(w), 64)])


def codes(table, ex, steps):
    "Rows of w alone, of w and layout, and of codes refined for so many steps. Gives the numbers of a code."
    begin, x = time.perf_counter(), table.x
    found = [ex.encode(v) for v in x.split(64)]
    w, feat = torch.cat([c[0] for c in found]), None if found[0][1] is None else torch.cat([c[1] for c in found])
    took = (time.perf_counter() - begin) / len(x)
    size, more = w[0].numel() if (w[:, :1] != w).any() else w.shape[-1], 0 if feat is None else feat[0].numel()
    table.add('w only', rendered(ex, w, None), took, size)
    if feat is not None: table.add('w + layout', rendered(ex, w, feat), took, size + more)
    for k in steps:
        begin = time.perf_counter()
        better = [optimise_code(ex, x[i:i + 32], w[i:i + 32], None if feat is None else feat[i:i + 32], k)
            for i in range(0, len(x), 32)]
        took_k = took + (time.perf_counter() - begin) / len(x)
        refined = rendered(ex, torch.cat([b[0] for b in better]),
            None if feat is None else torch.cat([b[1] for b in better]))
        table.add(f'refine {k}', refined, took_k, w[0].numel() + more)
    return size + more


def edits(table, ex, numbers):
    "Rows of counterfactuals with and without carried detail, of the tiles that both answer."
    found, _ = {}, explain(ex, table.tiles[:32])                          # the model's directions, once
    for name, kw in (('edited', {}), ('edited, carried', dict(carry=True))):
        begin = time.perf_counter()
        cfs = explain(ex, table.tiles, **kw)
        found[name] = cfs, (time.perf_counter() - begin) / len(cfs)
    both = [i for i in range(len(table.tiles)) if all(cfs[i].success for cfs, _ in found.values())]
    for name, (cfs, took) in found.items():
        ghost = [cfs[i].ghosting for i in both]
        table.add(name, np.stack([cfs[i].counterfactual for i in both]), took, numbers, both,
            answered=sum(c.success for c in cfs) / len(cfs),
            **({'ghosting': float(np.mean(ghost))} if np.isfinite(ghost).all() else {}))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', required=True)
    p.add_argument('--store', help="tile store; default: the model's")
    p.add_argument('--n', type=int, default=200, help='held-out tiles')
    p.add_argument('--refine', default='20,100', help="steps; '' for none")
    p.add_argument('--no_edits', action='store_true', help='of a model that cannot explain yet')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out')
    a = p.parse_args()
    torch.set_num_threads(1)
    ex = Explainer.load(a.model)
    val = (TileStore(a.store) if a.store else ex.store()).val
    pick = torch.randperm(len(val), generator=stream(a.seed, 'reconstruct'))[:a.n].tolist()
    table = Table(ex, np.stack([val[i][0] for i in pick]))
    numbers = codes(table, ex, [int(v) for v in a.refine.split(',') if v])
    if not a.no_edits: edits(table, ex, numbers)
    out = dict(model=dict(name=ex.card['name'], nimg=ex.card['nimg'], size=ex.size), n=len(pick), seed=a.seed,
        threads=1, rows=table.rows)
    if a.out: write_json(a.out, out)
    print(json.dumps(out))


if __name__ == '__main__': main()
