"""How near the pictures of a model come to held-out tiles, by how much of the tile is in the code: w alone, w and
layout, refined codes, and edits with and without carried detail.

    python benchmarks/reconstruct.py --model FOLDER [--store STORE] [--n 200] [--refine 20,100] [--out FILE.json]

ms_ssim and the perceptual distance are to the tile; dp is the change of the explained classifier's probability of the
second class. An edit (the engine's default, p >= 0.9) is compared with the tile too: what carrying detail brings.
Numbers in the code are counted for one tile. Last line: JSON with all rows."""

import argparse, json, time
import numpy as np, torch

from histoxplaining.inversion import refine
from histoxplaining.counterfactual import explain
from histoxplaining.explainer import Explainer
from histoxplaining.features import perceptual
from histoxplaining.files import stream, write_json
from histoxplaining.images import from_uint8, to_uint8
from histoxplaining.metrics import ms_ssim
from histoxplaining.tiles import TileStore


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', required=True)
    p.add_argument('--store', help="tile store; default: the model's")
    p.add_argument('--n', type=int, default=200, help='held-out tiles')
    p.add_argument('--refine', default='20,100', help="steps; '' for none")
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out')
    a = p.parse_args()
    torch.set_num_threads(1)
    ex = Explainer.load(a.model)
    val = (TileStore(a.store) if a.store else ex.store()).val
    pick = torch.randperm(len(val), generator=stream(a.seed, 'reconstruct'))[:a.n].tolist()
    tiles = np.stack([val[i][0] for i in pick])
    x, like, rows = from_uint8(tiles), perceptual(), []
    p0 = ex.probabilities(tiles)[:, 1].numpy()

    def row(name, pictures, seconds, numbers, some=slice(None), **more):
        y, base = from_uint8(pictures), x[some]
        with torch.no_grad(): far = torch.cat([like(u, v) for u, v in zip(base.split(64), y.split(64))])
        s, dp = ms_ssim(base, y), np.abs(ex.probabilities(pictures)[:, 1].numpy() - p0[some])
        rows.append({'name': name, 'n': len(pictures), s.record['metric']: float(s),
            'lpips' if type(like).__name__ == 'LPIPS' else 'perceptual': float(far.mean()), 'dp': float(dp.mean()),
            'dp_above_0.1': float((dp > .1).mean()),
                     'numbers': numbers, 'seconds': seconds, **more})
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)

    def render(w, feat):
        with torch.no_grad():
            return np.concatenate([to_uint8(ex.generate(w[i:i + 64], None if feat is None else feat[i:i + 64]))
                for i in range(0, len(w), 64)])

    begin = time.perf_counter()
    codes = [ex.encode(v) for v in x.split(64)]
    w, feat = torch.cat([c[0] for c in codes]), None if codes[0][1] is None else torch.cat([c[1] for c in codes])
    took = (time.perf_counter() - begin) / len(x)
    size = w[0].numel() if (w[:, :1] != w).any() else w.shape[-1]
    row('w only', render(w, None), took, size)
    if feat is not None: row('w + layout', render(w, feat), took, size + feat[0].numel())
    for k in (int(v) for v in a.refine.split(',') if v):
        begin = time.perf_counter()
        better = [refine(ex, x[i:i + 32], w[i:i + 32], None if feat is None else feat[i:i + 32], k)
            for i in range(0, len(x), 32)]
        took_k = took + (time.perf_counter() - begin) / len(x)
        row(f'refine {k}', render(torch.cat([b[0] for b in better]),
            None if feat is None else torch.cat([b[1] for b in better])), took_k,
            w[0].numel() + (0 if feat is None else feat[0].numel()))
    found, _ = {}, explain(ex, tiles[:32])                                # the model's directions, once
    for name, kw in (('edited', {}), ('edited, carried', dict(carry=True))):
        begin = time.perf_counter()
        cfs = explain(ex, tiles, **kw)
        found[name] = cfs, (time.perf_counter() - begin) / len(x)
    both = [i for i in range(len(x)) if all(cfs[i].success for cfs, _ in found.values())]
    for name, (cfs, took) in found.items():
        ghost = [cfs[i].ghosting for i in both]
        row(name, np.stack([cfs[i].counterfactual for i in both]), took,
            rows[0]['numbers'] + (0 if feat is None else feat[0].numel()), both,
            answered=sum(c.success for c in cfs) / len(x),
            **({'ghosting': float(np.mean(ghost))} if np.isfinite(ghost).all() else {}))
    out = dict(model=dict(name=ex.card['name'], nimg=ex.card['nimg'], size=ex.size), n=len(x), seed=a.seed, threads=1,
        rows=rows)
    if a.out: write_json(a.out, out)
    print(json.dumps(out))


if __name__ == '__main__': main()
