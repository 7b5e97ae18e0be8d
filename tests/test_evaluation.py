"""What an evaluation must say where the answer can be worked out: three classes, other people's pairs, methods that
cannot run, resampling."""

from dataclasses import replace
from types import SimpleNamespace
import numpy as np, pytest, torch
import torch.nn.functional as F
from histoxplaining import evaluation
from histoxplaining.classifier import Classifier
from histoxplaining.counterfactual import Counterfactual
from histoxplaining.evaluation import (Pairs, as_pairs, changes, cout, evaluate, jpeg, measure, read_pairs,
    risk_coverage, save_pairs, stability)
from histoxplaining.explainer import Cache, Explainer, Reference
from histoxplaining.features import perceptual
from histoxplaining.files import DataError, HxError
from histoxplaining.measured import averaged
from histoxplaining.images import to_uint8, write_png

CLASSES = 'red', 'green', 'blue'
distance = lambda a, b: (a - b).abs().mean([1, 2, 3])
# the brightest channel wins; turning changes nothing
channels = Classifier(lambda x: 8 * x.mean([2, 3]), CLASSES, 32)


def coloured(n=12, seed=0):
    "Pairs in which the brightest channel changes from red to green or blue."
    rng = np.random.default_rng(seed)
    x, y = rng.integers(90, 110, (2, n, 32, 32, 3)).astype(np.uint8)
    target = np.arange(n) % 2 + 1
    x[..., 0] += 100
    for i, t in enumerate(target): y[i, :, :, t] += 140
    return Pairs('colours', CLASSES, x, y, np.zeros(n, int), target)


def test_a_clear_change_of_three_classes_is_seen_as_one():
    p = coloured()
    s = stability(p, channels)
    assert (s['saved'] > .9).all() and np.abs(s['views'] - s['saved']).max() < 1e-6 and (s['start'] < .1).all()
    m = measure(p, channels, distance=distance, boots=100)
    assert m['flip_0.9', 'colours'] == m['flip_0.9_views', 'colours'] == m['answered', 'colours'] == 1
    with pytest.raises(HxError, match='no oracle'): m['oracle', 'colours']   # nobody was asked


def test_order_does_not_matter_and_intervals_hold_the_mean():
    p, order = coloured(), np.random.default_rng(1).permutation(12)
    q = replace(p, **{k: getattr(p, k)[order] for k in ('original', 'counterfactual', 'start', 'source', 'target',
        'found')})
    a, b = (measure(v, channels, distance=distance, boots=200) for v in (p, q))
    for x, y in zip(a, b):
        assert x == pytest.approx(y, abs=1e-9), x.record['metric']
        lo, hi = x.record['interval']
        assert lo <= x + 1e-9 and x <= hi + 1e-9


def test_bootstrap_covers_the_truth():
    "95 % intervals of a share hold the true share about as often as they say."
    rng, hits = np.random.default_rng(0), 0
    for i in range(200):
        lo, hi = averaged((rng.random(100) < .3).astype(float), 'share', boots=300, seed=i).record['interval']
        hits += lo <= .3 <= hi
    assert 178 <= hits <= 199
    ratio = averaged([1., 1, 0, 1], 'ratio', over=[1., 0])
    assert ratio == 1.5 and averaged([1., np.nan], 'x') == 1 and averaged([1., np.nan], 'x').record['interval'] is None
    assert np.isnan(averaged([np.nan], 'none'))


def test_cout_is_bounded_and_prefers_few_decisive_pixels():
    p = coloured()
    c = cout(p, channels)
    assert (np.abs(c) <= 1).all()
    few, bright = replace(p, counterfactual=p.start.copy()), p.target
    # half of the pixels, all the way
    for i, t in enumerate(bright): few.counterfactual[i, :16, :, t], few.counterfactual[i, :16, :, 0] = 255, 0
    both = replace(p, counterfactual=few.counterfactual.copy())
    # ... and the rest a little
    for i in range(len(p)): both.counterfactual[i, 16:] = (both.start[i, 16:].astype(int) + 1).astype(np.uint8)
    assert np.abs(cout(few, channels) - cout(both, channels)).max() < .05
    assert (cout(replace(p, counterfactual=p.start), channels) < -.8).all()


def test_area_and_distances_count_what_they_say():
    p = coloured()
    y = p.start.copy()
    # a quarter of the pixels, by 40 of 255
    y[:, :8] = np.where(y[:, :8] > 128, y[:, :8] - 40, y[:, :8] + 40)
    c = changes(replace(p, counterfactual=y), distance)
    assert c['area'] == pytest.approx(.25) and c['l1_start'] == pytest.approx(40 / 255 / 4, abs=1e-5)
    assert np.isnan(c['monotone']).all()
    assert (changes(replace(p, counterfactual=p.start), distance)['ms_ssim2_start'] > .9999).all()


def test_pairs_survive_the_disk_and_bad_folders_say_what_is_wrong(tmp_path):
    p = replace(coloured(), found=np.arange(12) != 4, reasons=['' if i != 4 else 'outside (3 s.d.)' for i in range(12)])
    q = read_pairs(save_pairs(p, tmp_path/'p'), channels)
    assert (q.original == p.original).all() and (q.target == p.target).all() and q.reasons[4] == 'outside (3 s.d.)'
    assert (q.found == p.found).all()
    assert measure(q, channels, distance=distance)['answered', 'p'].record['reasons'] == {'outside': 1}
    write_png(tmp_path/'p'/'counterfactual'/'00001.png', np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(DataError, match='16x16 pixels, expected 32x32'): read_pairs(tmp_path/'p', channels)
    (tmp_path/'p'/'pairs.csv').write_text('name,target\n00001,mauve\n')
    with pytest.raises(DataError, match="'mauve', but the classifier knows red"): read_pairs(tmp_path/'p', channels)
    (tmp_path/'p'/'pairs.csv').write_text('file,target\n00001,red\n')
    with pytest.raises(DataError, match='expected the columns name'): read_pairs(tmp_path/'p', channels)


def test_jpeg_keeps_what_is_smooth():
    x = np.tile(np.linspace(60, 200, 32).astype(np.uint8)[None, :, None, None], (2, 1, 32, 3))
    assert np.abs(jpeg(x).astype(int) - x).mean() < 2 and jpeg(x).shape == x.shape


def test_alternatives_are_kept_together_and_their_diversity_is_measured():
    p = coloured(2)
    def cf(i, ok):
        return Counterfactual('t', CLASSES, 'red', CLASSES[p.target[i]], .9, 'm', p.original[i], p.start[i],
            p.counterfactual[i] if ok else None, success=ok, step=1.,
            steps=np.array([0., .5, 2]), p_path=np.array([.1, .4, .99]), p=.9, reason='' if ok else 'no way')
    q = as_pairs([[cf(0, False), cf(0, True), cf(0, True)], [cf(1, False)]])
    assert q.found.tolist() == [True, False] and [len(v) for v in q.others] == [2,
        0] and q.paths[0].tolist() == pytest.approx([.1, .4, .9])
    m = measure(q, channels, distance=distance)
    assert m['diversity', 'm'] == 0 and m['alternatives', 'm'] == 1            # twice the same picture is no diversity


def test_a_method_that_cannot_run_does_not_end_the_evaluation(monkeypatch):
    def broken(*a, **k): raise HxError('needs a network that was never trained')
    ours = dict(evaluation.all_methods())
    monkeypatch.setattr(evaluation, 'all_methods', lambda: ours | {'amortised': broken})
    monkeypatch.setattr(evaluation, 'explain', lambda ex, pics,
        **k: broken() if k['method'] == 'amortised' else real_explain(ex, pics, **k))
    t = evaluate(Two(), images(), controls=('unedited',), hold=(), latencies=False, boots=50)
    assert t.skipped['amortised'] == 'needs a network that was never trained' and 'direction' not in t.skipped
    assert set(t.pairs) >= {'direction', 'unedited'}

real_explain = evaluation.explain


class Two(Explainer):
    "Paints w[0] into the red channel of a picture; that is the class."
    def __init__(self):
        self.classes, self.cache, self.device, self.size, self.card, self.folder = ('dark',
            'light'), Cache(), torch.device('cpu'), 32, {}, None
        self.translator, self.classifier = None, Classifier(lambda x: F.pad(16 * x[:, :1].mean([2, 3]), (1, 0)),
            self.classes, 32)
        w = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        self.reference = Reference(w, None, self.classify(self.generate(w)), torch.zeros(200, dtype=torch.long))
    def encode(self, images):
        from histoxplaining.explainer import as_batch
        x = as_batch(images, 32)[0]
        return F.pad(8 * x[:, :1].mean([2, 3]), (0, 3))[:, None], None
    def generate(self, w, feat=None):
        w = w if w.ndim == 2 else w[:, 0]
        return torch.stack([w[:, 0] / 8, 0 * w[:, 1], 0 * w[:, 2]], 1)[:, :, None, None].expand(-1, -1, 32, 32)


def images():
    w = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    w[:, 0] += w[:, 0].sign()
    return to_uint8(Two().generate(w))


def test_evaluation_repeats_itself_and_refuses_an_oracle_of_other_classes():
    kw = dict(controls=('random', 'pgd'), hold=(), latencies=False, boots=50, seed=3)
    a, b = evaluate(Two(), images(), **kw), evaluate(Two(), images(), **kw)
    assert [(m.record['metric'], float(m)) for m in a] == [(m.record['metric'], float(m)) for m in b]
    assert a['flip_0.9', 'direction'] == 1 and a['monotone', 'direction'] == pytest.approx(1)
    with pytest.raises(HxError, match='the oracle knows'):
        evaluate(Two(), images(), oracle=Classifier(lambda x: x.mean([2, 3]), CLASSES, 32), **kw)
    with pytest.raises(HxError, match='expected methods'): evaluate(Two(), images(), controls=('prayer',))


def test_risk_falls_where_the_score_knows():
    rng = np.random.default_rng(0)
    score = rng.random(500)
    wrong = (rng.random(500) < 1 - score).astype(float)
    coverage, risk, area = risk_coverage(score, wrong)
    assert (np.diff(coverage) > 0).all() and coverage[-1] == 1 and risk[-1] == pytest.approx(wrong.mean())
    assert area < risk_coverage(rng.random(500), wrong)[2] - .1
