"""Explanations against known causes: one model of procedural tissue in which glands and stain vary independently,
three classifiers that learnt different things from it.

    python benchmarks/audit.py --work FOLDER [--tiles 3000] [--kimg 20] [--translator_kimg 10] [--n 100] [--methods
        translate,direction,prototype+layout] [--p 0.9999] [--hold stain] [--all] [--seed 0] [--out FILE.json]

`gland` learns from labels that glands decide, `stain` from labels that stain decides, `both` from tissue in which the
two agree at correlation 0.9: what that one looks at is not told, it is measured (by rendering the same tiles with one
of them changed). Sanity: an edit for a classifier with permuted labels or permuted weights (five times) beside one
for a classifier trained again from another seed. What exists in --work is kept, so that an interrupted run goes on.
The model starts from `colon-64`, which has learnt to draw tissue, and the factor reader is accustomed to its hand.
`+layout` after a method's name lets it move the layout code too. `translate` has a translator of its own for each
classifier, trained with nothing held. --all counts every factor, also those that the reader cannot tell. Prints the
tables, and as the last line one JSON object."""
import argparse, json, time
from importlib.resources import files
from pathlib import Path
import numpy as np, torch
from PIL import Image

from histoxplaining.auditing import (GROUPS, READABLE, _towards, fine_tuned_reader, audit, edit_similarity, mirrored,
    movements, randomised, shortcut_report)
from histoxplaining.checkpoints import RunDir, load_network
from histoxplaining.classifier import Classifier, train_classifier
from histoxplaining.cli import continued
from histoxplaining.counterfactual import explain
from histoxplaining.explainer import Explainer
from histoxplaining.files import HxError, write_json
from histoxplaining.images import from_uint8, to_uint8, write_png
from histoxplaining.measured import plain
from histoxplaining.synthetic import CLASSES, FACTORS, draw_factors, relative_factors, render, synthetic_tiles
from histoxplaining.tiles import TileStore
from histoxplaining.training import TrainConfig, train
from histoxplaining.translator import Translator


SIZE = 64   # of the model that is started from


def store(root, name, tiles, labels, size):
    path = root/f'{name}.lmdb'
    if not path.exists():
        for i, (x, y) in enumerate(zip(tiles, labels)): write_png(root/name/CLASSES[y]/f'{i:06d}.png', x)
        TileStore.create(root/name, path, size=size, val=.1, split_by='random')
    return TileStore(path)


def classifier(root, name, tiles, seed=0):
    path = root/f'{name}.safetensors'
    if not path.exists(): train_classifier(tiles, arch='tf_efficientnet_lite0@16', epochs=3, seed=seed).save(path)
    return Classifier.load(path)


@torch.no_grad()
def crosstalk(ex, reader, n, seed=7):
    """What the reader reads, in deviations, of tissue of which one group of factors alone was mirrored: movement of
    every factor, towards the class that the group went to."""
    drawn = [f for _, f in (draw_factors(seed, i, 'both', 0.) for i in range(n))]
    def made(names):
        return np.concatenate([to_uint8(ex.reconstruct(np.stack([render(mirrored(f, names), ex.size, seed,
            i + k) for k, f in enumerate(drawn[i:i + 64])]))) for i in range(0, n, 64)])
    before = made(())
    spread = torch.cat([reader(x) for x in from_uint8(before).split(64)])
    side = _towards(relative_factors({k: np.array([f[k] for f in drawn], np.float32) for k in FACTORS}) - .5)
    towards = {g: -side[:, [list(FACTORS).index(k) for k in names]].mean(1).sign() for g, names in GROUPS.items()}
    return {g: {k: round(float(v.mean()), 3) for k,
        v in movements(before, made(names), towards[g], spread, GROUPS | {k: (k,) for k in FACTORS}, reader).items()}
        for g, names in GROUPS.items()}


def translator(root, name, run, store, clf, kimg, sure, **more):
    """A translator for one classifier, trained with nothing held, to be as sure as is asked; what the classifier does
    not need, in the pattern of the stains or in the code, costs."""
    out = root/f'translator_{name}'
    done = RunDir(out).latest() if out.exists() else None
    if done is None or done['nimg'] < round(kimg * 1000):
        given = dict(data=str(store.path), arch='translator', kimg=kimg, snap_kimg=1, stain_weight=0.,
            plane_weight=0., sure=sure, pattern_weight=2., length_weight=.3) | more
        cfg = continued(given, out) if done else TrainConfig(**given, init=str(run.model))
        train(cfg, out, clf, ckpt=out if done else None, quiet=True)
    return load_network(Translator, RunDir(out).model/'translator.safetensors')


def settings():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--work', type=Path, required=True)
    p.add_argument('--tiles', type=int, default=3000)
    p.add_argument('--kimg', type=float, default=20)
    p.add_argument('--translator_kimg', type=float, default=10)
    p.add_argument('--reader_tiles', type=int, default=6000, help='that the factor reader is accustomed with')
    p.add_argument('--together', type=float, default=0,
        help='thousand tiles of one more translator: for the classifier of glands, on tissue in which stain goes with '
        'the glands; asked what is needed, and what is typical')
    p.add_argument('--figure', help='*.jpg: what that one makes of eight tiles')
    p.add_argument('--all', action='store_true', help='count every factor, also those that the reader cannot tell')
    p.add_argument('--question', default='needed')
    p.add_argument('--closeness', type=float, default=.25)
    p.add_argument('--p', type=float, default=.9999,
        help='asked: about what the classifiers say of a typical tile of the class')
    p.add_argument('--hold', default='', help='comma-separated; default: nothing')
    p.add_argument('--n', type=int, default=100, help='fresh tiles to explain')
    p.add_argument('--methods', default='translate,direction,gradient+layout,prototype+layout')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out')
    return p.parse_args()


def prepared(a, root, say):
    "Stores, classifiers, the model, its translators, and the reader that knows its hand."
    if not all((root/f'{k}.lmdb').exists() for k in ('gland', 'stain', 'both')):
        say('drawing')
        tiles, y, f = synthetic_tiles(a.tiles, SIZE, 11, 'both', 0.)
        h = FACTORS['haematoxylin']
        store(root, 'gland', tiles, y, SIZE)
        store(root, 'stain', tiles, (f['haematoxylin'] > (h.lo + h.hi) / 2).astype(int), SIZE)
        store(root, 'both', *synthetic_tiles(a.tiles, SIZE, 12, 'both', .9)[:2], SIZE)
    stores = {k: TileStore(root/f'{k}.lmdb') for k in ('gland', 'stain', 'both')}
    say('classifiers')
    clfs = {k: classifier(root, k, s) for k, s in stores.items()}
    run, done = root/'run', RunDir(root/'run').latest() if (root/'run').exists() else None
    if done is None or done['nimg'] < round(a.kimg * 1000):
        say('model')
        cfg = TrainConfig(data=str(root/'gland.lmdb'), init=str(files('histoxplaining')/'models'/'colon-64'),
            kimg=a.kimg, ae_kimg=.4 * a.kimg, warm_kimg=2, snap_kimg=2, kl_ramp=.25, feat_swap=.25, l1_weight=2.)
        train(cfg, run, clfs['gland'], ckpt=run if done else None)
    ex, translators = Explainer.from_run(run), {}
    ex.refer(stores['gland'].train, len(stores['gland']))
    for k, clf in clfs.items() if 'translate' in a.methods else ():
        say(f'translator, {k}')
        translators[k] = translator(root, k, RunDir(run), stores['gland'], clf, a.translator_kimg, a.p)
    say('reader')
    return stores, clfs, ex, translators, fine_tuned_reader(ex, a.reader_tiles, epochs=12)


def audits(a, ex, clfs, translators, reader, out, say):
    "Every method for every classifier."
    for m in filter(None, a.methods.split(',')):
        name, _, layout = m.partition('+')
        for k, clf in clfs.items():
            say(f'{m}, {k}')
            ex.translator = translators.get(k)
            try:
                table = audit(ex, k if k != 'both' else None, classifier=None if k == 'gland' else clf, n=a.n,
                    method=name, space='w+layout' if layout else 'w', p=a.p,
                    hold=tuple(h for h in a.hold.split(',') if h), reader=reader, factors=True,
                    readable=-1 if a.all else READABLE, question=a.question, closeness=a.closeness,
                    seed=1000 + a.seed)
            except HxError as e: out['failed'][f'{m}, {k}'] = str(e); print(e); continue
            print(table.table())
            out['audits'] += [dict(method=m, classifier=k, **{x: plain(r.record).get(x) for x in ('metric', 'class',
                'value', 'interval', 'verdict', 'answered', 'cause', 'p', 'reader_r', 'unread')}) for r in table]


def together(a, root, run, ex, stores, clf, reader, out):
    """Where stain goes with the glands, tissue of the other class has another stain, and the classifier of glands does
    not need it: what `needed` and `typical` say of that."""
    ex.translator = translator(root, 'together', run, stores['both'], clf, a.together, a.p, proj_weight=1.5)
    for question, closeness in (('needed', 1.), ('typical', 0.)):
        table = audit(ex, 'gland', n=a.n, method='translate', p=.99, reader=reader, readable=-1, question=question,
            closeness=closeness, seed=1000 + a.seed)
        print(f'{question}, closeness {closeness:g}\n{table.table()}')
        out['together'] += [dict(question=question, closeness=closeness, **{x: plain(r.record).get(x)
            for x in ('metric', 'class', 'value', 'interval', 'answered')}) for r in table]
    if a.figure: picture(ex, a.figure)


def picture(ex, path, n=8):
    "Rows: tiles, reconstructions, what is needed, what is typical."
    tiles = [render(f, ex.size, 5, i) for i, (_, f) in enumerate(draw_factors(5, i, 'both', 0.) for i in range(n))]
    rows = [np.stack(tiles), None]
    for question, closeness in (('needed', 1.), ('typical', 0.)):
        found = explain(ex, tiles, p=.99, hold=(), method='translate', question=question, closeness=closeness)
        rows[1] = np.stack([c.reconstruction for c in found])
        rows.append(np.stack([c.reconstruction if c.counterfactual is None else c.counterfactual for c in found]))
    whole = np.concatenate([np.concatenate(list(r), 1) for r in rows])
    Image.fromarray(whole).resize((2 * whole.shape[1], 2 * whole.shape[0]), Image.NEAREST).save(path, quality=88)


def sanity(root, ex, stores, clfs, out):
    "An edit for the classifier beside one for another: trained again, of another cause, of permuted labels or weights."
    held = stores['gland'].val
    some, shuffled = [held[i][0] for i in range(0, len(held), max(len(held) // 48, 1))], stores['gland']
    again = classifier(root, 'gland_again', stores['gland'], seed=1)
    if not (root/'permuted.lmdb').exists():
        pics, labels = zip(*(shuffled[i] for i in range(len(shuffled))))
        store(root, 'permuted', pics, np.random.default_rng(0).permutation(labels), SIZE)
    permuted = classifier(root, 'permuted', TileStore(root/'permuted.lmdb'))
    for name, others in dict(trained_again=[again], other_cause=[clfs['stain']], permuted_labels=[permuted],
            permuted_weights=[randomised(clfs['gland'], k) for k in range(5)]).items():
        found = []
        for other in others:
            try: found.append(edit_similarity(ex, some, None, other))
            except HxError as e: out['failed'][f'sanity, {name}'] = str(e)
        if found:
            out['sanity'][name] = {k: v for k, v in plain(found[0].record).items()
                if k != 'interval'} | dict(value=float(np.mean(found)), each=[float(v) for v in found])
    print({k: round(v['value'], 3) for k, v in out['sanity'].items()})


def main():
    a = settings()
    torch.set_num_threads(1)
    begin, root = time.time(), a.work
    say = lambda what: print(f'[{time.time() - begin:4.0f} s] {what}', flush=True)
    root.mkdir(parents=True, exist_ok=True)
    stores, clfs, ex, translators, reader = prepared(a, root, say)
    out = dict(tiles=a.tiles, size=SIZE, p=a.p, hold=a.hold, seed=a.seed, nimg=ex.card['nimg'], n=a.n,
        accuracy={k: c.report['val']['accuracy'] for k, c in clfs.items()}, crosstalk=crosstalk(ex, reader, a.n),
        audits=[], failed={}, sanity={}, shortcuts=[], together=[])
    print('read where only ... is changed:', {g: {k: v for k, v in moved.items() if k in GROUPS or abs(v) > .3} for g,
        moved in out['crosstalk'].items()})
    audits(a, ex, clfs, translators, reader, out, say)
    if a.together:
        say('together')
        together(a, root, RunDir(root/'run'), ex, stores, clfs['gland'], reader, out)
    say('sanity')
    sanity(root, ex, stores, clfs, out)
    say('shortcuts')
    for k, clf in clfs.items():
        table = shortcut_report(clf, stores['both'].val, explainer=ex, name=k, seed=a.seed)
        out['shortcuts'] += [plain(m.record) for m in table]
        print(table.table())
    out['seconds'] = round(time.time() - begin)
    if a.out: write_json(a.out, out)
    print(json.dumps({k: out[k] for k in ('accuracy', 'failed', 'seconds')} |
        {'moved': {f"{r['classifier']}, {r['method']}": round(r['value'], 3) for r in out['audits']
        if r['metric'] == r['cause'] and r['class'].startswith('explanation')}}))


if __name__ == '__main__': main()
