"""The translator: trained by the one loop, resumed to the bit, kept beside its model, and an answer as a whole."""
from dataclasses import replace
import numpy as np, pytest, torch
from histoxplaining.checkpoints import RunDir, load_network
from histoxplaining.classifier import Classifier
from histoxplaining.cli import continued, hx_translator
from histoxplaining.counterfactual import explain
from histoxplaining.explainer import Code, Explainer
from histoxplaining.files import HxError
from histoxplaining.tiles import TileStore
from histoxplaining.training_step import TrainConfig, resolve
from histoxplaining.training import _guide, _prepare, train
from histoxplaining.translator import Translator

SIZES = dict(channel_base=256, channel_max=16)


@pytest.fixture(scope='module')
def model(tiny, tmp_path_factory):
    "A tiny autoencoder with a reference sample: enough to be translated."
    run = train(TrainConfig(data=str(tiny/'tiles.lmdb'), arch='autoencoder', kimg=.064, batch=8, **SIZES),
        tmp_path_factory.mktemp('m')/'run', tiny/'classifier.safetensors', quiet=True)
    Explainer.from_run(run)
    return run


def config(tiny, model, **kw):
    return TrainConfig(**dict(data=str(tiny/'tiles.lmdb'), arch='translator', init=str(model.path), batch=8,
        snap_kimg=.016) | kw)


def weights(run): return load_network(Translator, run.model/'translator.safetensors').state_dict()


def test_a_run_that_was_stopped_ends_with_the_same_bits(tiny, model, tmp_path):
    clf = tiny/'classifier.safetensors'
    whole = train(config(tiny, model, kimg=.032), tmp_path/'whole', clf, quiet=True)
    train(config(tiny, model, kimg=.016), tmp_path/'half', clf, quiet=True)
    again = train(continued(dict(data=str(tiny/'tiles.lmdb'), kimg=.032), tmp_path/'half'), tmp_path/'half', clf,
        ckpt=tmp_path/'half', quiet=True)
    a, b = weights(whole), weights(again)
    assert all(torch.equal(a[k], b[k]) for k in a) and a['out.weight'].abs().max() > 0
    x, y = RunDir(tmp_path/'whole').latest(), RunDir(tmp_path/'half').latest()
    assert all(torch.equal(v, y['nets']['P'][k]) for k, v in x['nets']['P'].items())
    assert [r for r in again.read_log()
        if r.get('snapshot')][-1]['flips/needed_0'] >= 0 and list((again.path/'samples').glob('translated_*.png'))


def test_generator_encoder_and_classifier_stay_as_they_are(tiny, model, tmp_path):
    before = Explainer.load(model.model)
    run = train(config(tiny, model, kimg=.016), tmp_path/'run', tiny/'classifier.safetensors', quiet=True)
    after = Explainer.load(run.model)
    for one, two in ((before.G, after.G), (before.E, after.E), (before.classifier, after.classifier)):
        assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    assert before.translator is None and after.translator is not None


def test_a_smaller_one_learns_from_the_one_beside_the_model(tiny, model, tmp_path):
    clf, data = tiny/'classifier.safetensors', str(tiny/'tiles.lmdb')
    small = dict(t_width=16, t_blocks=1, t_fold=2, distill_kimg=.024)
    with pytest.raises(HxError, match='no translator.safetensors to learn from'):
        train(config(tiny, model, kimg=.04, **small), tmp_path/'none', clf, quiet=True)
    first = train(config(tiny, model, kimg=.016), tmp_path/'first', clf, quiet=True).model
    new = lambda to, kimg: train(config(tiny, model, kimg=kimg, **small | dict(init=str(first))), tmp_path/to, clf,
        quiet=True)
    whole, _ = new('whole', .04), new('half', .016)                    # the game begins after three steps of five
    again = train(continued(dict(data=data, kimg=.04), tmp_path/'half'), tmp_path/'half', clf, ckpt=tmp_path/'half',
        quiet=True)
    a, b = weights(whole), weights(again)
    assert all(torch.equal(a[k], b[k]) for k in a)
    net = Explainer.load(whole.model).translator
    assert (net.init['width'], net.init['blocks'], net.fold) == (16, 1, 2)
    rows = [set(r) for r in whole.read_log()]
    assert {'like_w', 'like_layout', 'flip'} <= set.union(*rows)
    # a composer, and another run, take its shape from the weights
    same = train(config(tiny, model, kimg=.008, init=str(whole.model), beside=True), tmp_path/'same', clf, quiet=True)
    assert {k: v.shape for k, v in weights(same).items()} == {k: v.shape for k, v in a.items()}


def test_it_goes_on_with_other_classes_and_guides_one_of_twice_the_size(tiny, model, tmp_path, capsys):
    data, clf = str(tiny/'tiles.lmdb'), tiny/'classifier.safetensors'
    old = train(config(tiny, model, kimg=.016), tmp_path/'old', clf, quiet=True)
    # the same two classes by other names: the one that it knew keeps its column, a new one begins as the mean
    known = TileStore(data).classes
    names = (known[0], 'another')
    store = TileStore.create(tiny/'tiles', tmp_path/'new.lmdb', size=16, classes=dict(zip(names, known)))
    other = Classifier.load(clf)
    other.classes = names
    new = config(tiny, old, data=str(store.path), init=str(old.path), beside=True, kimg=.008)
    st = _prepare(new, None, other)[-1]
    a, b = (v['tell.0.weight'] for v in (load_network(Translator, old.model/'translator.safetensors').state_dict(),
        st.T.state_dict()))
    n = st.G.w_dim
    assert torch.equal(a[:, :n], b[:, :n]) and torch.equal(a[:, n + 2:], b[:, n + 2:])
    assert torch.equal(a[:, n], b[:, n]) and torch.equal(b[:, n + 1], a[:, n:n + 2].mean(1))
    with pytest.raises(SystemExit):
        hx_translator(str(old.path), store=str(store.path), classifier=str(clf), save=True)
    assert 'knows benign, tumour, and this is for benign, another' in capsys.readouterr().err
    # and a guide of half the size says what the change should be
    large = TileStore.create(tiny/'tiles', tmp_path/'large.lmdb', size=32)
    first = train(TrainConfig(data=str(large.path), arch='autoencoder', batch=8, kimg=.016, perceptual='lite0',
        **SIZES), tmp_path/'first', clf, quiet=True)
    guided = config(tiny, first, data=str(large.path), init=str(first.path), guide=str(old.path), kimg=.016)
    run = train(guided, tmp_path/'guided', clf, quiet=True)
    assert any('guide' in r for r in run.read_log())
    # it need not know every class, but one of them it must
    asked = replace(guided, size=32, device='cpu')
    assert _guide(asked, ('another', known[1], known[0]))[-1].tolist() == [-1, 1, 0]
    assert 'knows nothing of another' in capsys.readouterr().out
    with pytest.raises(HxError, match='expected 16 px and some of another, third'): _guide(asked, ('another', 'third'))
    with pytest.raises(HxError, match='has pictures of 16 px and classes .*: expected 8 px'):
        train(config(tiny, model, guide=str(old.path)), tmp_path/'x', clf, quiet=True)
    with pytest.raises(HxError, match='only a translator is guided'):
        train(replace(guided, arch='autoencoder'), tmp_path/'y', clf, quiet=True)


def test_parts_of_a_batch_make_the_step_of_the_whole(tiny, model, tmp_path):
    clf = tiny/'classifier.safetensors'
    one = weights(train(config(tiny, model, kimg=.008, bf16=False), tmp_path/'one', clf, quiet=True))
    two = weights(train(config(tiny, model, kimg=.008, batch_gpu=4, bf16=False), tmp_path/'two', clf, quiet=True))
    far = {k: float((one[k] - two[k]).norm() / one[k].norm().clamp_min(1e-6)) for k in one}
    assert max(far.values()) < 2e-2, far


def test_the_command_puts_it_beside_the_model_and_the_engine_asks_it_first(tiny, model, tmp_path, capsys):
    ex = Explainer.load(model.model)
    ex.export(tmp_path/'model', data=str(tiny/'tiles.lmdb'))
    hx_translator(str(tmp_path/'model'), store=str(tiny/'tiles.lmdb'), kimg=.016, batch=8,
        output_path=str(tmp_path/'run'), save=True)
    ex = Explainer.load(tmp_path/'model')
    assert ex.translator is not None and ex.translator.n_classes == 2
    tiles = ex.render(ex.reference.code[:6])
    asked = [c for c in explain(ex, tiles, method='translate', hold=(), p=.5)
        if c.reason.code not in ('already', 'outside', 'size', 'reconstruction')]
    for c in asked: assert c.method == 'translate' and 'needed' in c.along and (not c.success or c.p >= .5)
    several = explain(ex, tiles, hold=(), p=.5, n=2)
    assert all(1 <= len(v) <= 2 for v in several)


def test_what_a_translator_needs_is_said(tiny, model):
    with pytest.raises(HxError, match='belongs to a model'): resolve(TrainConfig(arch='translator'), 16)
    with pytest.raises(HxError, match="question 'both'"):
        explain(Explainer.load(model.model), np.zeros((16, 16, 3), np.uint8), question='both')
    with pytest.raises(HxError, match='closeness=2'):
        explain(Explainer.load(model.model), np.zeros((16, 16, 3), np.uint8), closeness=2)
    [c] = explain(Explainer.load(model.model),
        Explainer.load(model.model).render(Explainer.load(model.model).reference.code[:1]), method='translate',
        refine=0)
    assert c.success is False and (c.reason.code != 'no method' or 'hx_translator' in c.reason)


def test_alternatives_leave_the_answer_as_it_is():
    ex = Explainer.from_pretrained('colon-64')
    pics = ex.render(ex.sample(range(40, 44)))
    one, many = explain(ex, pics, refine=0), explain(ex, pics, refine=0, n=3)
    for a, b in zip(one, many):
        assert a.success == b[0].success and (not a.success or len(b) > 1
            and (a.counterfactual.astype(int) - b[0].counterfactual).__abs__().max() <= 1)


def test_a_pruned_step_is_enough_and_less():
    "What the classifier does not need is taken back: p holds, the picture changes less, and it says where it moved."
    ex = Explainer.from_pretrained('colon-64')
    pics = ex.render(ex.sample(range(12)))
    whole, less = explain(ex, pics), explain(ex, pics, prune=True)
    both = [(a, b) for a, b in zip(whole, less) if a.success and a.method == 'translate']
    assert len(both) >= 6
    for a, b in both:
        assert b.success and b.p >= .9 and b.kept.shape == (65,) and set(np.unique(b.kept)) <= {0., 1.}
        assert b.step <= a.step + 1e-4 and a.kept is None
    assert np.mean([b.area for _, b in both]) < np.mean([a.area for a, _ in both])
    assert 0 < np.mean([b.kept.mean() for _, b in both]) < 1


def test_a_price_on_pattern_and_length_makes_steps_smaller(tiny, model, tmp_path):
    "The terms that keep a translator to what is needed are there, finite, and nothing without their weights."
    from histoxplaining.translator import _length, _pattern
    x = torch.rand(3, 3, 32, 32) * 1.2 - .8
    assert _pattern(x, x).abs().max() < 1e-6 and (_pattern(x, x * .8) > 0).all()
    step = torch.zeros(3, 8), torch.zeros(3, 4, 4, 4)
    assert _length(step, torch.ones(8)).max() < 1e-3 and _length((step[0] + 2, step[1]), torch.ones(8)).min() > 1.9
    run = train(config(tiny, model, kimg=.016, pattern_weight=1., length_weight=1.), tmp_path/'t',
        tiny/'classifier.safetensors', quiet=True)
    terms = next(r for r in run.read_log() if 'pattern' in r)
    assert np.isfinite([terms['pattern'], terms['length']]).all() and terms['near'] > 0
