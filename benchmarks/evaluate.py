"""The table of `evaluation.evaluate` for a trained model: every method and control, both directions, on held-out
tiles.

    python benchmarks/evaluate.py --model FOLDER [--store STORE] [--oracle FILE|alexnet] [--classifier FILE] [--n 200]
        [--layout prototype] [--demands] [--out FILE.json]

Methods in --layout are asked to move the layout too, on a quarter of the tiles, and stand in the table as `NAME, with
layout`. With --demands the first method is also asked for the smallest change (p = 0.9 in one view), and with nothing
held. Prints the table, and as the last line one JSON object: the default method's figures and the seconds the whole
took. The oracle is a classifier of another architecture (`evaluation.train_oracle`); with --train_oracle ARCH it is
trained on the store's training tiles first and written to --oracle. `alexnet` is a linear head on AlexNet's features,
learnt from the store's training tiles in a minute or two. With --out, the figures, the counts of reasons,
and the risk-coverage curve are written as JSON that the notebook shows. --shortcuts NAME=FILE ... adds the shortcut
report of further classifiers."""
import argparse, json, time
from pathlib import Path
import numpy as np, torch

from histoxplaining.auditing import shortcut_report
from histoxplaining.classifier import Classifier, linear_probe
from histoxplaining.counterfactual import methods as all_methods
from histoxplaining.evaluation import CONTROLS, evaluate, risk_coverage, train_oracle
from histoxplaining.explainer import Explainer
from histoxplaining.features import features, fingerprint
from histoxplaining.files import write_json
from histoxplaining.measured import plain
from histoxplaining.tiles import TileStore


def curve(table, name, score):
    "A risk-coverage curve in at most 40 points."
    c, r, area = risk_coverage(score, 1 - table.values('oracle_says_target', name))
    k = np.unique(np.linspace(0, len(c) - 1, 40).round().astype(int))
    return dict(coverage=c[k].round(4).tolist(), risk=r[k].round(4).tolist(), area=round(area, 4))


def add(table, other, name):
    "Put the one column of another evaluation into the table, under a name."
    for m in other: m.record['class'] = name
    table.extend(other)
    table.skipped |= {name: why for why in other.skipped.values()}
    table.pairs |= {name: p for p in other.pairs.values()}


def kept(results):
    "Figures as JSON has them."
    return [{k: v for k, v in plain(m.record).items()
        if k in ('metric', 'class', 'value', 'interval', 'reasons', 'n', 'n_finite', 'sd', 'batch')} for m in results]


def described(oracle, explained):
    "What the oracle is, and whether it learnt from the tiles the explained classifier learnt from."
    r = oracle.report
    same = r['tiles']['hash'] == explained.report.get('tiles', {}).get('hash')
    return dict(arch=oracle.arch or 'alexnet, linear head', explained=explained.arch, accuracy=r['val']['accuracy'],
        n=r['val']['n'], split_by=r['tiles']['split_by'], same_training_tiles=same,
        **{k: r.get(k) for k in ('pretrained', 'stain_jitter', 'seed', 'epochs')})


def settings():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', required=True, help='folder of a run or a model')
    p.add_argument('--store', help="tile store; default: the model's")
    p.add_argument('--oracle', help='a classifier (*.safetensors), or alexnet')
    p.add_argument('--train_oracle', metavar='ARCH', help='train one first, if the file is not there')
    p.add_argument('--classifier', help="explain this one instead of the model's own")
    p.add_argument('--n', type=int, default=200, help='tiles per class')
    p.add_argument('--steps', type=int, default=300, help='of the optimisation, at most')
    p.add_argument('--methods', help='comma-separated; default: all')
    p.add_argument('--controls', default=','.join(CONTROLS))
    p.add_argument('--alternatives', type=int, default=1)
    p.add_argument('--shortcuts', nargs='*', default=[], metavar='NAME=FILE')
    p.add_argument('--ask', type=float, help='p that is asked for; default: 0.9. Flips are counted from 0.9')
    p.add_argument('--views', type=int, default=1, help='dihedral views in whose mean p must hold too')
    p.add_argument('--hold', default='stain', help="comma-separated; '' holds nothing")
    p.add_argument('--space', default='w', help="'w', 's' or 'w+layout'")
    p.add_argument('--layout', default='',
        help='comma-separated methods that are also asked with the layout, on a quarter of the tiles')
    p.add_argument('--demands', action='store_true', help='what the demands cost the first method')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out')
    a = p.parse_args()
    a.layout = [m for m in a.layout.split(',') if m]
    if unknown := [m for m in a.layout if m not in ('auto', *all_methods())]:
        raise SystemExit(f'--layout {unknown[0]}: expected some of {", ".join(all_methods())}')
    a.hold, a.methods = tuple(h for h in a.hold.split(',') if h), a.methods and a.methods.split(',')
    a.controls = [c for c in a.controls.split(',') if c]
    return a


def networks(a):
    "What is explained, on what, and by whom it is judged: explainer, store, classifier or None, oracle or None."
    ex = Explainer.open(a.model)
    store = TileStore(a.store) if a.store else ex.store()
    if ex.reference is None: ex.refer(store.train)
    clf = Classifier.load(a.classifier) if a.classifier else None
    if a.train_oracle and not Path(a.oracle).exists():
        train_oracle(store, clf or ex.classifier, arch=a.train_oracle).save(a.oracle)
    if a.oracle == 'alexnet': return ex, store, clf, linear_probe(store, features('alexnet').net, size=store.size)
    return ex, store, clf, Classifier.load(a.oracle) if a.oracle else None


def risks(table):
    "Risk-coverage curves of every column that has answers, by what an answer is trusted for."
    out = {}
    for m in (m for m in table.pairs if table.pairs[m].found.any()):
        out[m] = {'holds in other views': curve(table, m, table.values('p_views', m))}
        step = table.pairs[m].step
        if step is not None and np.isfinite(step).any(): out[m]['small edit'] = curve(table, m, -step)
    return out


def demands(a, ex, asked):
    "The first method, asked for the smallest change, and with nothing held."
    first, kinds = a.methods[0] if a.methods else 'direction', {}
    for k, kw in {'smallest': dict(ask=.9, views=1), 'nothing held': dict(hold=())}.items():
        found = evaluate(ex, methods=first, controls=[], n=a.n, space=a.space, **asked | kw)
        kinds[k] = {n: v for n, v in (asked | kw).items() if n in ('ask', 'views', 'hold')} | {'figures': kept(found)}
    return kinds


def main():
    a = settings()
    torch.set_num_threads(1)
    begin = time.time()
    ex, store, clf, oracle = networks(a)
    say = lambda name: print(f'[{time.time() - begin:4.0f} s] {name}', flush=True)
    asked = dict(classifier=clf, oracle=oracle, store=store, steps=a.steps, views=a.views, ask=a.ask or .9,
        hold=a.hold, seed=a.seed, callback=say)
    table = evaluate(ex, methods=a.methods, controls=a.controls, n=a.n, alternatives=a.alternatives, space=a.space,
        **asked)
    for name in a.layout:
        add(table, evaluate(ex, methods=name, controls=[], n=max(a.n // 4, 1), space='w+layout', **asked),
            f'{name}, with layout')
    for name, why in table.skipped.items(): print(f'{name}: {why}')
    print(table.table())
    out = dict(model=dict(name=ex.card['name'], nimg=ex.card['nimg'], size=ex.size, fingerprint=fingerprint(ex.G)),
        classes=list(ex.classes), n=a.n, ask=a.ask or .9, hold=','.join(a.hold), space=a.space, views=a.views,
        seed=a.seed, threads=1, oracle=None if oracle is None else described(oracle, clf or ex.classifier),
        skipped=table.skipped, figures=kept(table))
    if oracle is not None: out['risk'] = risks(table)
    if a.demands: out['others'] = demands(a, ex, asked)
    for name, path in (v.split('=') for v in a.shortcuts or ()):
        say(f'shortcuts of {name}')
        out.setdefault('shortcuts', {})[name] = [plain(m.record) for m in shortcut_report(Classifier.load(path),
            store.val, explainer=ex, name=name, seed=a.seed)]
    out['seconds'] = round(time.time() - begin)
    if a.out: write_json(a.out, out)
    first = next(iter(table.pairs))
    def get(k):
        return next((round(float(m), 4) for m in table if m.record['metric'] == k and m.record['class'] == first),
            None)
    print(json.dumps({k: get(k) for k in ('answered', 'flip_0.5', 'flip_0.9', 'flip_0.9_views', 'oracle', 'area')} |
        dict(method=first, n=a.n, seconds=out['seconds'])))


if __name__ == '__main__': main()
