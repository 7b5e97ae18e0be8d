"""The promises of the counterfactual engine, on generators whose cause is known: found, only it, minimal, judged as
saved; and clear answers where there is none."""

from types import SimpleNamespace
import numpy as np, pytest, torch
from histoxplaining.inversion import transfer_detail
from histoxplaining.counterfactual import diverse, effect, explain, summarise
from histoxplaining.explainer import Cache, Code, Explainer, Reference, as_batch
from histoxplaining.files import HxError
from histoxplaining.images import from_uint8, hed, read_image, to_uint8, write_png
from histoxplaining.latents import HOLDS, class_direction
from histoxplaining.classifier import log_odds
from histoxplaining.methods import Ask, Edit, Trial, crossing, methods, next_size, search
from histoxplaining.training import TrainConfig, train

CAUSE, TOP, OTHER = 3, 1, 5                                      # coordinates of w that are seen in the picture


class Toy(Explainer):
    """Blue of the lower half is w[3]; red of the upper half is w[1]; green of the lower half is w[5]. The layout
    code paints a square at the top left."""
    def __init__(self, classes=('pink', 'blue'), read=lambda img: 16 * img[:, 2, 8:].mean([1, 2]), bias=0., feat=False):
        self.classes, self.cache, self.device, self.size, self.read = classes, Cache(), torch.device('cpu'), 16, read
        self.bias, self.with_feat = bias, feat
        self.classifier, self.translator = SimpleNamespace(temperature=1., classes=classes), None
        g = torch.Generator().manual_seed(0)
        codes = torch.randn(2000, 12, generator=g)
        layouts = torch.nn.functional.normalize(torch.randn(2000, 2, 4, 4, generator=g),
            dim=1) * 2**.5 if feat else None
        self.reference = Reference(codes, layouts, self.classify(self.generate(codes, layouts)),
            torch.zeros(2000, dtype=torch.long))

    def encode(self, images):
        x = as_batch(images, 16)[0]
        w = torch.zeros(len(x), 12)
        w[:, CAUSE], w[:, TOP], w[:, OTHER] = x[:, 2, 8:].mean([1, 2]) * 8, x[:, 0, :8, 8:].mean([1, 2]) * 8, x[:, 1,
            8:].mean([1, 2]) * 8
        feat = torch.tensor([-1., 1.]).view(1, 2, 1, 1).repeat(len(x), 1, 4, 4) if self.with_feat else None
        return w[:, None], feat

    def mapping(self, seeds, label=None, truncation_psi=1.):
        return torch.stack([torch.randn(1, 12, generator=torch.Generator().manual_seed(s)) for s in seeds])

    def generate(self, w, feat=None, s=None):
        w = w if w.ndim == 2 else w.mean(1)
        paint = lambda v, h, k: (w[:, v, None, None] / 8).expand(-1, h, k)
        black = torch.zeros(len(w), 8, 16)
        corner = torch.zeros(len(w), 8, 8) if feat is None else torch.nn.functional.interpolate(feat[:, :1] / 4, 8)[:,
            0]
        return torch.stack([torch.cat([torch.cat([corner, paint(TOP, 8, 8)], 2), black], 1),
            torch.cat([black, paint(OTHER, 8, 16)], 1), torch.cat([black, paint(CAUSE, 8, 16)], 1)], 1)

    def classify(self, img, classifier=None):
        v = self.read(img)
        logits = torch.stack([0 * v, v - self.bias, 16 * img[:, 1, 8:].mean([1, 2])][:len(self.classes)], 1)
        if not torch.isfinite(logits).all(): raise HxError('the classifier gave logits that are not finite')
        return logits


def pictures(toy, n=5, shift=-1.5):
    "Pictures that the toy calls pink."
    w = torch.randn(n, 12, generator=torch.Generator().manual_seed(1)).clamp(-1.5, 1.5)
    w[:, CAUSE] = shift - w[:, CAUSE].abs() / 2
    return to_uint8(toy.generate(w, toy.encode(np.zeros((n, 16, 16, 3), np.uint8))[1]))


@pytest.fixture(scope='module')
def toy(): return Toy()


@pytest.fixture(scope='module')
def pink(toy): return pictures(toy)


@pytest.mark.parametrize('method', ['auto', 'direction', 'gradient'])
def test_finds_the_cause_and_only_it(toy, pink, method):
    for c in explain(toy, pink, 'blue', method=method, hold=()):
        assert c.success and c.p >= .9 and c.space == 'w' and c.style_only, c
        change = np.abs(c.counterfactual.astype(int) - c.reconstruction.astype(int))
        assert change[8:, :, 2].min() >= 40 and change[:8].max() <= 6 and change[8:, :, :2].max() <= 6
        moved = np.abs(c.w[1] - c.w[0])
        assert moved[CAUSE] > 10 * np.delete(moved, CAUSE).max()
        assert np.abs(c.heatmap[8:]).min() > 0 and np.abs(c.heatmap[:8]).max() < .1 * np.abs(c.heatmap[8:]).max()
        assert set(c.stain_maps) == {'H', 'E'} and c.stain_maps['H'].shape == (16, 16)


@pytest.mark.parametrize('p', [.5, .9, .99])
@pytest.mark.parametrize('method', ['direction', 'gradient'])
def test_minimal_and_judged_as_saved(toy, pink, method, p, tmp_path):
    "The saved picture read back has the p that is returned; an edit a tenth smaller has not reached it."
    for c in explain(toy, pink, 'blue', method=method, hold=(), p=p):
        write_png(tmp_path/'c.png', c.counterfactual)
        assert toy.probabilities(read_image(tmp_path/'c.png')[None])[0, 1].item() == pytest.approx(c.p,
            abs=1e-6) and c.p >= p
        assert c.p_half <= c.step * (1 + 1e-6)
        w = toy.encode(c.reconstruction)[0]
        full = torch.from_numpy(c.w[1] - c.w[0])
        assert toy.probabilities(to_uint8(toy.generate(w + .85 * full)))[0, 1] < p
        k = int(np.searchsorted(c.steps, c.step))
        # the first crossing of all that was seen
        assert (c.p_path[:k] < p).all() and c.p_path[k] == pytest.approx(c.p, abs=1e-5)


def test_deterministic_and_independent_of_company(toy, pink):
    a, b = (explain(toy, pink, 'blue', method='gradient', hold=hold, seed=3) for hold in ((), None))
    assert all((x.counterfactual == y.counterfactual).all() and x.step == y.step for x, y in zip(a, b))
    alone, together = explain(toy, pink[2:3], 'blue', hold=())[0], explain(toy, pink, 'blue', hold=())[2]
    assert (alone.counterfactual == together.counterfactual).all()


def test_a_class_without_channels_is_a_tile_without_an_answer(toy, pink, monkeypatch):
    "Where no channel of StyleSpace moves the classifier there is a reason, and the call goes on."
    monkeypatch.setattr('histoxplaining.methods.attfind_directions', lambda *a, **k: [])
    monkeypatch.setattr(toy, 'cache', type(toy.cache)())
    for c in explain(toy, pink[:2], 'blue', method='attfind', hold=()):
        assert not c.success and 'no channel' in c.reason


def test_path_that_comes_back(pink):
    "p rises, falls and rises again: a closer look finds the near side of the first hill."
    hill = Toy(read=lambda img: (v := 16 * img[:, 2, 8:].mean([1, 2])) * 0 + 8 * torch.exp(-(v - 1).square() / .5) + 4 *
        (v - 4.5).clamp_min(0) - 3)
    far = explain(hill, pink, 'blue', hold=(), scan=24)
    assert all(c.success for c in far)
    for c in far: assert c.w[1][CAUSE] < .5 and (np.diff(c.steps) > 0).all()


def test_frames_begin_and_end_with_the_pictures(toy, pink):
    c = explain(toy, pink[:1], 'blue', hold=(), frames=7)[0]
    assert len(c.frames) == len(c.frame_p) == 7 and (c.frames[0] == c.reconstruction).all()
    assert (c.frames[-1] == c.counterfactual).all()
    assert c.frame_steps[-1] == pytest.approx(c.step) and c.frame_p[-1] == pytest.approx(c.p, abs=1e-6)


def test_hold(toy, pink):
    "What is held does not move, where the class can be reached without it."
    mixed = Toy(read=lambda img: 8 * img[:, 2, 8:].mean([1, 2]) + 8 * img[:, 0, :8, 8:].mean([1, 2]))
    HOLDS['top'] = {'red of the top': lambda img: img[:, 0, :8, 8:].mean([1, 2])}
    try:
        for method in ('direction', 'gradient'):
            free, held = (explain(mixed, pink, 'blue', hold=h, method=method)[0] for h in ((), ('top',)))
            move = lambda c, k: abs(c.w[1][k] - c.w[0][k]) / np.linalg.norm(c.w[1] - c.w[0])
            assert free.success and held.success and move(free, TOP) > .5 and move(held, TOP) < .1 and move(held,
                CAUSE) > .9
    finally: del HOLDS['top']
    with pytest.raises(HxError, match='expected some of stain'): explain(toy, pink, 'blue', hold=('size',))


def test_clear_answers_where_there_is_none(toy, pink):
    blue = explain(toy, pink[:1], 'blue', hold=())[0].counterfactual
    c = explain(toy, blue, 'blue', hold=())[0]
    assert (c.success, c.counterfactual) == (False, None) and 'already says blue' in c.reason and len(c.steps) == 0
    blind = Toy(read=lambda img: (16 * img[:, 2, 8:].mean([1, 2])).clamp(max=.5))
    c = explain(blind, pink[:1], 'blue', hold=(), frames=4)[0]
    assert not c.success and 'p(blue) stays below 0.9' in c.reason and c.counterfactual is None and np.isnan(c.p)
    assert len(c.frames) == 4
    # the decision turns, though nothing convinces
    assert np.isfinite(c.p_half)
    c = explain(Toy(bias=30.), pink[:1], 'blue', hold=())[0]
    assert not c.success and 'stays below' in c.reason and np.isnan(c.p_half)   # reachable only outside of the tissue
    far = to_uint8(toy.generate(torch.eye(12)[TOP:TOP + 1] * 7 - torch.eye(12)[CAUSE:CAUSE + 1] * 2))
    c = explain(toy, far, 'blue', hold=())[0]
    assert not c.success and 'outside the encoded tissue' in c.reason and c.distance > c.limit
    with pytest.raises(HxError, match='pink, blue'): explain(toy, pink, 'violet')
    with pytest.raises(HxError, match='not finite'):
        explain(Toy(read=lambda img: img[:, 2, 8:].mean([1, 2]) * (float('nan') if len(img) == 3 else 1)), pink[:3],
            'blue')
    for bad in (dict(method='magic'), dict(space='z'), dict(p=1.), dict(p=.2), dict(n=0), dict(seeds=[1])):
        with pytest.raises(HxError): explain(toy, pink, 'blue', **bad)
    bare = Toy(); bare.reference = None
    with pytest.raises(HxError, match='refer'): explain(bare, pink, 'blue')


def test_reconstruction_that_changes_the_decision(toy, pink):
    class Forgetful(Toy):
        def encode(self, images):
            return super().encode(images)[0] * torch.where(torch.arange(12) == CAUSE, -1., 1.), None
    c = explain(Forgetful(), pink[:1], 'blue', hold=())[0]
    assert not c.success and c.reason.startswith('the reconstruction alone changes the decision to blue')
    assert summarise([c])['reasons'] == {'the reconstruction alone changes the decision to blue': 1}


def test_three_classes(pink):
    three = Toy(('pink', 'blue', 'green'))
    dark = to_uint8(three.generate(torch.tensor([[0, 0, 0, -2., 0, -1.] + [0] * 6, [0, .5, 0, -1., 0, -2.] + [0] * 6])))
    got = explain(three, dark, 'all', hold=())
    assert [sorted(g) for g in got] == [['blue', 'green']] * 2
    for g in got:
        for k, c in g.items():
            p = three.probabilities(c.counterfactual[None])[0]
            assert c.success and p[three.classes.index(k)] >= .9 and p.argmax() == three.classes.index(k)
    # the second most likely
    assert [c.target for c in explain(three, dark, 'next', hold=())] == ['green', 'blue']
    many = explain(three, dark, 'all', hold=(), n=2, method='gradient')
    assert all(isinstance(v, list) and v[0].success for g in many for v in g.values())


def test_another_classifier(toy, pink):
    class Red(torch.nn.Module):
        classes, temperature = ('pink', 'blue'), 2.
        def forward(self, x): v = 16 * x[:, 0, :8, 8:].mean([1, 2]) - 3; return torch.stack([0 * v, v], 1)
        def frozen(self): return self
    class Open(Toy):
        def classify(self, img, classifier=None): return classifier(img) if classifier else super().classify(img)
    red = Red()
    for c in explain(Open(), pink, 'blue', hold=(), classifier=red):
        moved = np.abs(c.w[1] - c.w[0])
        assert c.success and moved.argmax() == TOP
        assert (red(from_uint8(c.counterfactual[None])) / 2).softmax(1)[0, 1].item() == pytest.approx(c.p, abs=1e-5)


def test_classes_belong_to_the_classifier(pink):
    "Another order, other names, one class more: targets and sources are the classifier's own."
    class Other(torch.nn.Module):
        classes, temperature = ('azure', 'grey', 'rose'), 1.
        def forward(self, x): v = 16 * x[:, 2, 8:].mean([1, 2]); return torch.stack([v, 0 * v - 40, 0 * v], 1)
        def frozen(self): return self
    class Open(Toy):
        def classify(self, img, classifier=None): return classifier(img) if classifier else super().classify(img)
    toy, other = Open(), Other()
    for a, b in zip(explain(toy, pink, hold=(), classifier=other), explain(toy, pink, 'blue', hold=())):
        assert a.success and (a.source, a.target) == ('rose',
            'azure') and a.classes == other.classes and a.step == pytest.approx(b.step, rel=.1)
    assert [c.target for c in explain(toy, pink, 'azure', hold=(), classifier=other)] == ['azure'] * len(pink)
    assert set(explain(toy, pink[:1], 'all', hold=(), classifier=other)[0]) == {'azure', 'grey'}
    with pytest.raises(HxError, match='azure, grey, rose'): explain(toy, pink, 'blue', classifier=other)


def test_layout_only_where_style_fails():
    "A class that only the layout can show: style alone fails, the default then moves the layout and says so."
    spatial = Toy(read=lambda img: 16 * img[:, 0, :8, :8].mean([1, 2]), feat=True)
    x = pictures(spatial)
    assert not any(c.success for c in explain(spatial, x, 'blue', hold=(), method='gradient'))
    for c in explain(spatial, x, 'blue', hold=(), p=.8):
        assert c.success and c.space == 'w+layout' and not c.style_only and c.method == 'gradient'
        assert np.abs(c.heatmap[8:]).max() <= .05 + .1 * np.abs(c.heatmap[:8, :8]).max()


def test_several_answers_differ():
    "Either half can make it blue: two answers, not one twice; and one where there is one."
    either = Toy(read=lambda img: torch.logsumexp(torch.stack([16 * img[:, 2, 8:].mean([1, 2]),
        16 * img[:, 0, :8].mean([1, 2]) * 2]), 0) - 1)
    w = torch.zeros(2, 12)
    w[:, CAUSE], w[:, TOP] = torch.tensor([-2., -1.5]), torch.tensor([-1., -1.5])
    answers = explain(either, to_uint8(either.generate(w)), 'blue', hold=(), n=4)
    for a in answers:
        assert 1 <= len(a) <= 4 and all(c.success for c in a)
        e = torch.stack([effect(c.reconstruction, c.counterfactual) for c in a])
        assert ((e @ e.T) - 2 * torch.eye(len(a))).max() < .9
    one = explain(Toy(), pictures(Toy())[:1], 'blue', hold=(), n=4)[0]
    assert len(one) == 1
    assert diverse(torch.eye(3), 2) == [0, 1] and diverse(torch.ones(4, 1), 3) == [0]


def test_carry_starts_from_the_tile(toy, pink):
    "Detail that the generator misses comes back, the finished picture is the one that is judged."
    rng = np.random.default_rng(0)
    textured = np.clip(pink.astype(int) + rng.integers(-8, 9, pink.shape), 0, 255).astype(np.uint8)
    for plain, c in zip(explain(toy, textured, 'blue', hold=()),
            explain(toy, textured, 'blue', hold=(), carry=True, frames=3)):
        assert c.success and c.carried and 0 <= c.ghosting <= 1
        assert toy.probabilities(c.counterfactual[None])[0, 1].item() == pytest.approx(c.p, abs=1e-6)
        assert (c.frames[0] == c.original).all()
        rest = lambda v: np.abs(v.counterfactual[:8].astype(int) - v.original[:8].astype(int)).mean()
        # the half that is not edited keeps its texture
        assert rest(c) < .3 * rest(plain)
    with pytest.raises(HxError, match='carry'): explain(toy, seeds=[1], target='blue', carry=True)


def test_a_prototype_is_tissue_that_exists(toy, pink):
    "The step ends at an encoded tile of the target at the latest, and without one there is a reason."
    from histoxplaining.losses import texture_statistics
    from histoxplaining.methods import prototype
    code, ask = toy.code(pink), Ask(0, 1, hold=())
    w = code.w
    for e in prototype(toy, code, ask, k=3):
        ends = w[:, 0] + torch.from_numpy(e.reach)[:, None] * e.w[:, 0]
        assert torch.cdist(ends, toy.reference.w, compute_mode='donot_use_mm_for_euclid_dist').amin(1).max() < 1e-4
    for c in explain(toy, pink, 'blue', method='prototype', hold=()):
        assert c.success and c.p >= .9 and 'tile' in c.along
    look = lambda w: texture_statistics(hed(toy.generate(w)))
    says = toy.classify(toy.generate(toy.reference.w)).softmax(1)[:, 1] >= .9
    sd, first = look(toy.reference.w).std(0).clamp_min(1e-6), prototype(toy, code, ask, k=1)[0]
    # the tile of the target that looks most like it
    alike = torch.cdist(look(w) / sd, look(toy.reference.w[says]) / sd).argmin(1)
    ends = w[:, 0] + torch.from_numpy(first.reach)[:, None] * first.w[:, 0]
    assert torch.allclose(ends, toy.reference.w[says][alike], atol=1e-4)
    with pytest.raises(HxError, match="not 's'"): explain(toy, pink, 'blue', method='prototype', space='s', hold=())
    with pytest.raises(HxError, match='no layout code'):
        explain(toy, pink, 'blue', method='prototype', space='w+layout', hold=())
    [c] = explain(toy, pink[:1], 'blue', method='prototype', p=1 - 1e-12, hold=())
    assert not c.success and 'of no reference tile' in c.reason


def test_methods_have_one_signature():
    import inspect
    want = ['explainer', 'code', 'ask']
    for name, f in methods().items():
        sig = list(inspect.signature(f).parameters)
        assert sig[:3] == want, name
        assert name == 'translate' or any(c.isdigit() for c in f.__doc__), f'{name} cites no source'


def test_log_odds_of_saturated_pictures_are_finite():
    l = torch.tensor([[0., 500.], [500., 0.]])
    assert log_odds(l, 1).tolist() == [500., -500.]
    assert next_size([Trial(0., -500.)], 2., lambda gap: gap, 16.) <= 16
    assert crossing([Trial(0., -1.), Trial(1., 3.), Trial(2., 1.), Trial(3., 9.)], .9).size == 1.


def test_the_search_ends_where_nothing_changes_any_more(toy):
    "A saturated classifier: two looks of one size, or of one answer, tell no power to go on with."
    for seen in ([Trial(0., -9.), Trial(1., -5.), Trial(1., -5.)], [Trial(0., -9.), Trial(1., -5.), Trial(2., -5.)],
            [Trial(0., -9.), Trial(1., -5.), Trial(1., -4.)]):
        t = next_size(seen, 2., lambda gap: gap / 4, 16.)
        assert t is None or np.isfinite(t) and 0 < t <= 16
    # a decision tree: certain on both sides
    step = Toy(read=lambda img: torch.where(img[:, 2, 8:].mean([1, 2]) > .1, 200., -200.))
    code, edit = step.code(pictures(step)), Edit('along the cause', w=torch.eye(12)[CAUSE].expand(5, 1, 12),
        reach=np.full(5, 9.), slope=np.full(5, 1e-6))
    for p in (.9, .9999):
        for seen in search(step, code, edit, step.render(code), Ask(0, 1, p)):
            assert crossing(seen, p) is not None and len({v.size for v in seen}) == len(seen)
    assert all(c.success or c.reason.code == 'no method' for c in explain(step, pictures(step), 'blue', hold=()))


def test_a_report_shows_real_tiles_beside_its_answers(tiny, tmp_path):
    from histoxplaining.cli import hx_explain
    cfg = TrainConfig(data=str(tiny/'tiles.lmdb'), arch='autoencoder', kimg=.016, batch=8, channel_base=256,
        channel_max=16)
    run = train(cfg, tmp_path/'run', tiny/'classifier.safetensors', quiet=True)
    hx_explain(str(run.path), None, n=12, p=.5, hold='none', nearest=2, out=str(tmp_path/'r.html'))
    page = (tmp_path/'r.html').read_text()
    answers = page.count('<article class="case"')                        # those that failed have another class
    assert answers and page.count('<figcaption>real · ') == 2 * answers


def test_what_a_model_needs_lies_beside_it(monkeypatch, tmp_path):
    "Gradients and directions of the packaged model are read and not worked out; of other weights they are not taken."
    import shutil
    from histoxplaining import latents
    from histoxplaining.explainer import MODELS
    ex = Explainer.load('colon-64')
    def never(*a, **kw): raise AssertionError('worked out')
    with monkeypatch.context() as m:
        m.setattr(latents, 'mean_gradient', never)
        d = latents.class_direction(ex, 'healthy', 'adenocarcinoma')
        assert latents.held_gradients(ex).shape == (512, 3) and d.hold == ('stain',) and d.effect.shape == (5, 2)
    fresh = Explainer.load('colon-64')
    fresh.folder = None
    assert torch.cosine_similarity(latents.class_direction(fresh, 0, 1).vector, d.vector, dim=0) > .999
    shutil.copytree(MODELS/'colon-64', tmp_path/'m')
    shutil.copy(tmp_path/'m'/'classifier_plain.safetensors', tmp_path/'m'/'classifier.safetensors')
    with monkeypatch.context() as m:
        m.setattr(latents, 'mean_gradient', never)
        with pytest.raises(AssertionError, match='worked out'):
            latents.class_direction(Explainer.load(tmp_path/'m'), 0, 1)
