"""Plain and stain-robust classifier, on a random split and on held-out pseudo-slides, beside what colour alone
reaches.

    python benchmarks/classifiers.py [SOURCE] [--classes a,b] [--epochs 6] [--out FILE.json] [--save FOLDER] [--quick]

SOURCE is what `TileStore.create` reads; default: the colon tiles in $HX_SHARED. Prints a table, and as the last line
one JSON object. A figure of each classifier comes from tiles that chose nothing: neither weights nor epoch nor
temperature."""

import argparse, json, os, tempfile, time
from pathlib import Path

from histoxplaining.classifier import stain_dependence, train_classifier
from histoxplaining.files import read_json, write_json
from histoxplaining.tiles import TileStore

FIGURES = ('accuracy', 'auc', 'ece_raw', 'ece', 'flips', 'accuracy_restained', 'flips_same', 'r2')

def trained(store, by, robust, a):
    "A classifier and its row of figures."
    val, t = store.split(by)[1], time.time()
    clf = train_classifier(store, stain_jitter=robust, split_by=by, epochs=1 if a.quick else a.epochs, seed=a.seed,
        callback=print)
    v, d = clf.report['val'], stain_dependence(clf, val)
    return clf, dict(classifier='stain-robust' if robust else 'plain', split=by, n=v['n'], accuracy=v['accuracy'],
        auc=v['auc'], ece_raw=v['ece_raw'], ece=v['ece'], flips=d['flips'], accuracy_restained=d['accuracy'],
        flips_same=d['flips_same'], r2=d['r2'], temperature=clf.temperature, epochs=len(clf.report['history']),
        seconds=round(time.time() - t))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('source', nargs='?', default=Path(os.environ.get('HX_SHARED', '../shared'))/'data'/'colon')
    p.add_argument('--classes', default='healthy,adenocarcinoma')
    p.add_argument('--size', type=int, default=64)
    p.add_argument('--epochs', type=int, default=6)
    p.add_argument('--seed', type=int, default=0, help='of split and training')
    p.add_argument('--out', help='add the figures to the list in this file')
    p.add_argument('--save', help='folder for the four classifiers')
    p.add_argument('--quick', action='store_true', help='every eighth tile, one epoch')
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        store = TileStore.create(a.source, Path(tmp)/'t.lmdb', size=a.size, classes=a.classes.split(','), seed=a.seed)
        if a.quick:
            from histoxplaining.sources import open_source
            table, items = Path(tmp)/'some.csv', open_source(a.source, a.classes.split(',')).items[::8]
            table.write_text('\n'.join(['path,label',
                *(f'{Path(a.source).resolve()/i.name},{i.label}' for i in items)]))
            store = TileStore.create(table, Path(tmp)/'q.lmdb', size=a.size, classes=a.classes.split(','), seed=a.seed)
        rows = []
        for by in ('pseudo_slide', 'random'):
            for robust in (False, True):
                clf, row = trained(store, by, robust, a)
                rows.append(row)
                print(json.dumps(row), flush=True)
                if a.save: clf.save(Path(a.save)/f"{row['classifier']}_{by}.safetensors")
            for name, r in (('RGB moments, linear', clf.report['rgb']),
                    ('RGB moments, trees', clf.report['rgb']['trees'])):
                rows.append(dict(classifier=name, split=by, n=r['n'], accuracy=r['accuracy'], auc=r['auc'],
                    ece=r['ece']))
        out = dict(counts=store.counts, size=store.size, seed=a.seed, epochs=1 if a.quick else a.epochs, rows=rows)
    print('\n| classifier | split | ' + ' | '.join(FIGURES) + ' |')
    for r in rows:
        print(f"| {r['classifier']} | {r['split']} | " +
            ' | '.join('' if r.get(k) is None else f'{r[k]:.3f}' for k in FIGURES) + ' |')
    if a.out: write_json(a.out, (read_json(a.out) if Path(a.out).exists() else []) + [out])
    print(json.dumps(out))

if __name__ == '__main__': main()
