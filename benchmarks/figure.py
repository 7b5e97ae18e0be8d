"""A picture of answers, chosen by rule: held-out tiles of each class at a fixed stride that the classifier tells
rightly, their reconstructions, counterfactuals and changes.

    python benchmarks/figure.py STORE OUT.jpg [--model colon-64] [--n 8] [--scale 1.5]

Rows, for each direction: tile, reconstruction, counterfactual, change (orange: more stain, blue: less). Answers that
were not found are left out and counted on the last line, as JSON."""
import argparse, json
import numpy as np, torch
from PIL import Image

from histoxplaining.counterfactual import explain
from histoxplaining.explainer import Explainer
from histoxplaining.images import grid
from histoxplaining.report import change_maps, colour_limit
from histoxplaining.tiles import TileStore

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('store'); p.add_argument('out'); p.add_argument('--model', default='colon-64')
    p.add_argument('--n', type=int, default=8); p.add_argument('--scale', type=float,
        default=1.5); p.add_argument('--closeness', type=float, default=.25)
    a = p.parse_args()
    torch.set_num_threads(1)
    ex, val, rows, missed = Explainer.load(a.model), TileStore(a.store).val, [], {}
    for k, c in enumerate(ex.classes):
        mine = np.flatnonzero(val.labels == k)
        mine = mine[np.linspace(0, len(mine) - 1, 2 * a.n).astype(int)]
        cfs = [c for c in explain(ex, [val[int(i)][0] for i in mine], ex.classes[(k + 1) % len(ex.classes)],
            closeness=a.closeness) if c.source != c.target]
        good = [c for c in cfs if c.success][:a.n]
        missed[c] = [x.reason for x in cfs if not x.success]
        limit = colour_limit([x.heatmap for x in good])
        rows += [np.stack([getattr(x, n) for x in good])
            for n in ('original', 'reconstruction',
            'counterfactual')] + [np.stack([change_maps(x, limit)[-1] for x in good])]
    img = Image.fromarray(np.concatenate([grid(r, a.n) for r in rows]))
    img.resize((int(img.width * a.scale), int(img.height * a.scale)), Image.BICUBIC).save(a.out, quality=90)
    print(json.dumps(missed))

if __name__ == '__main__': main()
