"""Truth about classifiers of procedural tissue, and what the audit refuses."""
from types import SimpleNamespace
import numpy as np, pytest, torch
from histoxplaining.auditing import GROUPS, audit, mirrored, movements, randomised, reactions, shortcut_report
from histoxplaining.classifier import Classifier, backbone
from histoxplaining.files import DataError, HxError
from histoxplaining.images import from_uint8, hed
from histoxplaining.synthetic import CAUSES, FACTORS, draw_factors, relative_factors, render


def test_groups_hold_every_factor_once():
    assert sorted(k for names in GROUPS.values() for k in names) == sorted(FACTORS)


def test_a_mirrored_cause_lands_on_the_other_side():
    for i in range(20):
        label, f = draw_factors(3, i, 'both', 1.)
        m = mirrored(f, CAUSES['both'])
        for k in CAUSES['both']:
            u, v = ((g[k] - FACTORS[k].lo) / (FACTORS[k].hi - FACTORS[k].lo) for g in (f, m))
            assert (u > .5) != (v > .5) and min(u, v) <= .451 and max(u, v) >= .549
        assert all(m[k] == f[k] for k in GROUPS['rest'])


def test_a_classifier_of_one_thing_reacts_to_it_alone():
    lamp = Classifier(lambda x: torch.stack([0 * x[:, 0, 0, 0], 40 * (hed(x)[:, 1].mean([1, 2]) - .27)], 1),
        ('benign', 'tumour'), 32)
    drawn = [draw_factors(5, i, 'none') for i in range(24)]
    r = reactions(lamp, drawn, 32, 5, {'eosin': ('eosin',), 'shape': ('gland_shape',)}, boots=50)
    assert r['eosin', 'classifier reacts'] > .8 and r['shape', 'classifier reacts'] < .15


def test_movements_are_signed_towards_the_target():
    drawn = [draw_factors(7, i, 'stain') for i in range(24)]
    spread = relative_factors({k: np.array([f[k] for _, f in drawn], np.float32) for k in FACTORS})
    before, after = (np.stack([render(mirrored(f, names), 64, 7, i) for i, (_, f) in enumerate(drawn)])
        for names in ((), CAUSES['stain']))
    # mirrored stain: each tile becomes like the other class
    towards = [1 if l == 0 else -1 for l, _ in drawn]
    there, back = movements(before, after, towards, spread), movements(after, before, towards, spread)
    assert there['stain'].mean() > 1 and (there['stain'] > .5).mean() > .9
    assert back['stain'] == pytest.approx(-there['stain'], abs=1e-4)
    assert abs(there['glands'].mean()) < .25


def test_permuting_weights_keeps_their_numbers_and_the_original():
    torch.manual_seed(0)
    clf = Classifier(backbone('test_resnet', 2), ('a', 'b'), 32)
    before = {k: v.clone() for k, v in clf.state_dict().items()}
    other, again = randomised(clf, 1), randomised(clf, 1)
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    assert all(torch.equal(v, before[k]) for k, v in clf.state_dict().items())
    assert torch.equal(other(x), again(x)) and not torch.allclose(other(x), clf.eval()(x))


class Tiles:
    "As much of a store as the report needs: three classes that differ in one channel."
    classes = 'red', 'green', 'blue'
    def __init__(self, n=60, one=False):
        rng = np.random.default_rng(0)
        self.labels = np.zeros(n, int) if one else np.arange(n) % 3
        self.pics = rng.integers(100, 140, (n, 32, 32, 3)).astype(np.uint8)
        for i, y in enumerate(self.labels): self.pics[i, ..., y] += 60
    def __len__(self): return len(self.labels)
    def tensors(self, i): return from_uint8(self.pics[np.asarray(i)]), torch.as_tensor(self.labels[np.asarray(i)])


def test_shortcut_report_of_three_classes():
    clf = Classifier(lambda x: 8 * x.mean([2, 3]), Tiles.classes, 32)
    r = shortcut_report(clf, Tiles(), n=40, boots=50)
    assert r['share_stain'] > .5 and abs(r['share_scale']) < .05 and r['flips_all'] == 1     # colour is all there is
    lo, hi = r['share_stain'].record['interval']
    assert lo <= r['share_stain'] <= hi
    assert [float(a) for a in shortcut_report(clf, Tiles(), n=40, boots=50)] == [float(a) for a in r]
    with pytest.raises(DataError, match='the tiles are red'):
        shortcut_report(Classifier(lambda x: x.mean([2, 3]), ('a', 'b', 'c'), 32), Tiles())
    with pytest.raises(DataError, match='one class'): shortcut_report(clf, Tiles(one=True))


def test_an_audit_needs_procedural_tissue():
    with pytest.raises(HxError, match='benign, tumour; this one has healthy'):
        audit(SimpleNamespace(classes=('healthy', 'sick')))


def test_a_factor_that_cannot_be_read_is_left_out_and_named(monkeypatch):
    "A reader that reads brightness off the order of the tiles, and everything else from the truth."
    import histoxplaining.auditing as room
    drawn = [draw_factors(1000, i, 'both', 0.) for i in range(24)]
    truth = relative_factors({k: np.array([f[k] for _, f in drawn], np.float32) for k in FACTORS})
    blind = truth.clone()
    blind[:, list(FACTORS).index('brightness')] = torch.linspace(0, 1,
        24)[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    seen = []
    def reader(x):                                                            # the spread, then after, then before
        seen.append(len(x))
        return blind if len(seen) < 3 else blind + .5 * (torch.arange(12) == list(FACTORS).index('brightness'))
    tile = np.full((32, 32, 3), 128, np.uint8)
    found = [SimpleNamespace(success=True, reconstruction=tile, counterfactual=tile, target='tumour', reason='')
        for _ in drawn]
    monkeypatch.setattr(room, 'explain', lambda *a, **k: found)
    clf = Classifier(lambda x: torch.stack([0 * x[:, 0, 0, 0], 40 * (hed(x)[:, 1].mean([1, 2]) - .27)], 1),
        ('benign', 'tumour'), 32)
    r = audit(SimpleNamespace(classes=('benign', 'tumour'), classifier=clf, size=32), 'stain', n=24, reader=reader,
        factors=True, boots=50)
    rest = r['rest', 'explanation moves (s.d.)']
    assert rest.record['unread'] == ['brightness'] and rest.record['reader_r'] > .99
    # its jump is not counted
    assert rest == pytest.approx(0, abs=1e-5) and not r['glands', 'explanation moves (s.d.)'].record['unread']
    alone = r['brightness', 'explanation moves (s.d.)'].record
    # nothing of the group is left to judge by
    assert alone['unread'] == ['brightness'] and alone['verdict'] is None
