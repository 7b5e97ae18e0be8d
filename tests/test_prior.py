"""A prior over codes: trained like everything else, and what samples are made of where there is one."""
import shutil
from types import SimpleNamespace
import numpy as np, pytest, torch
from histoxplaining.checkpoints import load_network
from histoxplaining.classifier import Classifier
from histoxplaining.cli import _with_layouts, hx_classifier, hx_prior
from histoxplaining.counterfactual import _many_rays, _order, explain
from histoxplaining.explainer import Explainer
from histoxplaining.features import generated
from histoxplaining.files import CheckpointError, HxError, load_meta, load_tensors, save_tensors
from histoxplaining.latents import NoDirection
from histoxplaining.layers import multiplies_bfloat16, reduced
from histoxplaining.methods import DEPTHS, GUIDANCE, STEPS, Ask, flow, moved, translate
from histoxplaining.prior import FlowTranslator, Prior
from histoxplaining.training import TrainConfig, train
from histoxplaining.training_step import Remembered
from histoxplaining.translator import Translator

SIZES = dict(channel_base=256, channel_max=16, feat_channels=4, map_layers=1)


@pytest.fixture(scope='module')
def model(tiny, tmp_path_factory):
    "A model of 16 px with a layout code, hardly trained."
    run = train(TrainConfig(data=str(tiny/'tiles.lmdb'), arch='autoencoder', batch=8, kimg=.016, perceptual='lite0',
        **SIZES), tmp_path_factory.mktemp('prior')/'run', tiny/'classifier.safetensors', quiet=True)
    Explainer.from_run(run)                                            # leaves reference tiles
    return run.model


def of_prior(folder): return {k: v for k, v in Explainer.load(folder).prior.state_dict().items()}


def test_a_prior_that_was_stopped_goes_on_as_if_it_had_not_been(model, tiny, tmp_path):
    kw = dict(data=str(tiny/'tiles.lmdb'), arch='prior', init=str(model), batch=8)
    whole = train(TrainConfig(kimg=.032, **kw), tmp_path/'whole', tiny/'classifier.safetensors', quiet=True)
    part = train(TrainConfig(kimg=.016, **kw), tmp_path/'part', tiny/'classifier.safetensors', quiet=True)
    train(TrainConfig(kimg=.032, **kw), part.path, tiny/'classifier.safetensors', ckpt=part.path, quiet=True)
    a, b = of_prior(whole.model), of_prior(part.model)
    assert all(torch.equal(a[k], b[k]) for k in a)
    nets = [Explainer.load(f) for f in (model, whole.model)]
    assert all(torch.equal(v, nets[1].G.state_dict()[k]) for k, v in nets[0].G.state_dict().items())
    assert any(v.abs().max() > 0 for k, v in a.items() if k.startswith('out'))
    # from the weights that lie beside a model, in place of from nothing
    model2 = Explainer.load(model).export(tmp_path/'given', n=8)
    with pytest.raises(CheckpointError, match='no prior.safetensors to go on from'):
        train(TrainConfig(kimg=.008, **kw | dict(init=str(model2), beside=True)), tmp_path/'no',
            tiny/'classifier.safetensors', quiet=True)
    shutil.copy(whole.model/'prior.safetensors', model2)
    on = train(TrainConfig(kimg=.008, **kw | dict(init=str(model2), beside=True, f_lr=1e-9)), tmp_path/'on',
        tiny/'classifier.safetensors', quiet=True)
    assert all(torch.allclose(v, a[k], atol=1e-5) for k, v in of_prior(on.model).items())
    assert list((whole.path/'samples').glob('drawn_*.png')) and 'val_flow' in whole.read_log()[-1]


def test_what_a_model_draws_has_a_layout_and_with_a_prior_its_own(model, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lent = Explainer.load(model)
    c = torch.eye(2)
    pictures = lambda ex, **kw: generated(ex.G, 6, c=c, noise_mode=ex.noise_mode, seed=1, **kw).read(range(6))
    plain, borrowed = pictures(lent), pictures(lent, **_with_layouts(lent, 1, 1.))
    assert borrowed.shape == plain.shape and (borrowed != plain).any(axis=(1, 2, 3)).all()
    assert (lent.sample([5, 6]).feat[:, None] == lent.reference.feat).flatten(2).all(2).any(1).all()
    hx_prior(str(model), store=str(tiny/'tiles.lmdb'), kimg=.016, batch=8, output_path=str(tmp_path/'run'), save=True)
    own = Explainer.load(model)
    drawn = own.sample([5, 6])
    about = [generated(ex.G, 6, c=c, seed=1, **kw).about for ex, kw in ((lent, {}), (lent, _with_layouts(lent, 1, 1.)),
        (own, _with_layouts(own, 1, 1.)))]
    assert len({a['hash'] for a in about}) == 3
    assert 'reference tiles' in about[1]['history'] and 'prior' in about[2]['history']
    assert not (drawn.feat[:, None] == own.reference.feat).flatten(2).all(2).any()
    assert torch.allclose(drawn.feat.square().mean(1), torch.ones(2, 4, 4), atol=1e-4)
    # a seed is a tile, whatever stands beside it, and a class makes a difference
    assert torch.allclose(own.sample([6]).feat, drawn[1].feat, atol=1e-4)
    assert (own.sample([5], 'benign').w - own.sample([5], 'tumour').w).abs().max() > 0
    assert (pictures(own, **_with_layouts(own, 1, 1.)) != borrowed).any()
    (model/'prior.safetensors').unlink()


def test_a_prior_needs_layout_codes_and_noise_of_its_size(model, tiny, tmp_path):
    bare = train(TrainConfig(data=str(tiny/'tiles.lmdb'), arch='stylegan2', batch=8, kimg=.008, channel_base=256,
        channel_max=16), tmp_path/'bare', quiet=True)
    with pytest.raises(HxError, match='layout codes|encoder'):
        train(TrainConfig(data=str(tiny/'tiles.lmdb'), arch='prior', init=str(bare.path), batch=8, kimg=.008,
            feat_channels=0), tmp_path/'x', tiny/'classifier.safetensors', quiet=True)
    with pytest.raises(HxError, match='belongs to a model'):
        train(TrainConfig(data=str(tiny/'tiles.lmdb'), arch='prior'), tmp_path/'y', tiny/'classifier.safetensors')


def test_codes_are_taken_as_they_are(model, tiny, tmp_path):
    for arch in ('prior', 'translator'):
        with pytest.raises(HxError, match=f'feat_res 8: a {arch} takes the codes of its model as they are'):
            train(TrainConfig(data=str(tiny/'tiles.lmdb'), arch=arch, init=str(model), feat_res=8, batch=8),
                tmp_path/'z', tiny/'classifier.safetensors', quiet=True)
    with pytest.raises(HxError, match='stylegan2 has no layout code'):
        train(TrainConfig(data=str(tiny/'tiles.lmdb'), arch='stylegan2', feat_patch=True, batch=8), tmp_path/'z',
            quiet=True)


def test_flow_proposes_whole_steps_that_grow_with_depth_and_needs_a_prior(model, tiny, tmp_path):
    ex = Explainer.load(model)
    code, ask = ex.code(ex.render(ex.reference.code[:3])), Ask(0, 1)
    with pytest.raises(NoDirection, match='hx_prior makes one'): flow(ex, code, ask)
    run = train(TrainConfig(data=str(tiny/'tiles.lmdb'), arch='prior', init=str(model), batch=8, kimg=.032, f_lr=.002),
        tmp_path/'run', tiny/'classifier.safetensors', quiet=True)
    ex.prior = Explainer.load(run.model).prior
    edits = flow(ex, code, Ask(0, 1, closeness=1.))
    assert [len(flow(ex, code, Ask(0, 1, closeness=c))) for c in (1., .25, 0.)] == [len(DEPTHS), len(DEPTHS) - 1, 1]
    assert (edits[0].whole < edits[-1].whole).all() and all(e.w.abs().max() == 0 for e in edits)   # the style stays
    assert flow(ex, code, Ask(0, 1, hold=()))[-1].w.abs().max() > 0
    # at the end of the whole step stands the code that the prior drew
    c = torch.eye(2)
    with reduced(multiplies_bfloat16()):
        (w, feat), = ex.prior.redrawn(code.mean, code.feat, c[[0] * 3], c[[1] * 3], DEPTHS[-1:], STEPS,
            guidance=GUIDANCE[-1:])
    [e] = flow(ex, code, Ask(0, 1, closeness=0.))
    there = code.feat + e.feat * torch.tensor(e.whole)[:, None, None, None]
    assert torch.allclose(there, feat, atol=1e-4) and (feat - code.feat).abs().max() > 1e-3
    # two draws are two answers, the first of which is the one that stands alone
    one, two = flow(ex, code, Ask(0, 1, closeness=0., n=2))
    assert torch.equal(one.feat, e.feat) and (two.feat - one.feat).abs().max() > 1e-3
    # without being told a method the engine asks the flow first, about classes that the prior knows
    assert [m for m, _ in _order(ex, 'auto', ask)][0] == 'flow' == _many_rays(ex, 'auto', code, ask)[0][0]
    # and then from other noise
    (_, first), (_, others) = _order(ex, 'flow', ask)
    assert first == ask and _order(ex, 'auto', ask)[:2] == _order(ex, 'flow', ask)
    mixtures = flow(ex, code, others)
    assert len(mixtures) == (others.n - 1) * len(flow(ex, code, ask)) and others.n > 1
    assert all((m.feat - e.feat).abs().max() > 1e-3 for m in mixtures)     # none of them is the first once more
    ex.prior = None
    assert 'flow' not in [m for m, _ in _order(ex, 'auto', ask)]


def test_guidance_leads_further_away_from_what_it_leaves():
    torch.manual_seed(0)
    net, eye = Prior(16, (4, 8, 8), 2, styles=2, width=16, blocks=1, told=16), torch.eye(2)
    x = torch.randn(3, 4, 8, 8)
    net.layout_velocity = lambda x, t, u, c: c[:, :1, None, None] * torch.ones_like(x)      # the class, and no more
    along = lambda c, **kw: net._laid_out(x, torch.zeros(3, 2), c, 0., 1., 4, **kw)
    a, none = eye[[0] * 3], torch.zeros(3, 2)
    assert torch.allclose(along(a), x + 1) and torch.allclose(along(a, guidance=3.), x + 3, atol=1e-5)
    assert torch.allclose(along(a, guidance=3., away=a), x + 1, atol=1e-5)
    assert torch.allclose(along(eye[[1] * 3], guidance=2., away=a), x - 1, atol=1e-5)


def test_codes_are_worked_out_once_for_every_tile_and_orientation():
    asked = []
    def encode(x):
        asked.append(len(x))
        return x.mean((2, 3))[:, None].expand(-1, 4, -1), x
    memory = Remembered(SimpleNamespace(encode=encode), lambda x: x.amax((2, 3)))
    x = torch.randn(4, 3, 4, 4)
    first = memory(x)
    w, feat, logits = memory(torch.cat([x[2:], x[:1].flip(3), x[2:3]]))
    assert asked == [4, 1] and torch.equal(feat[:2], first[1][2:]) and torch.equal(feat[3], feat[0])
    assert torch.allclose(w[:2], x[2:].mean((2, 3)), atol=1e-3) and torch.equal(logits[2], first[2][0])
    assert torch.equal(feat[2], first[1][0].flip(2))
    # what does not fit is worked out again
    small, asked[:] = Remembered(SimpleNamespace(encode=encode), lambda x: x.amax((2, 3)), most=1), []
    for _ in range(3): small(x[:2]); small(x[2:])
    assert asked == [2, 2, 2, 2]


def test_a_classifier_is_steadied_on_the_reconstructions_of_a_model(model, tiny, tmp_path, capsys):
    kw = dict(stability=4., arch='test_resnet', scratch=True, epochs=1)
    hx_classifier(str(tiny/'tiles.lmdb'), str(tmp_path/'a.safetensors'), reconstructed=str(model), **kw)
    hx_classifier(str(tiny/'tiles.lmdb'), str(tmp_path/'b.safetensors'), **kw)
    a, b = (Classifier.load(tmp_path/f'{k}.safetensors') for k in 'ab')
    assert a.report['copies'] and not b.report['copies']
    assert any(not torch.equal(u, v) for u, v in zip(a.model.state_dict().values(), b.model.state_dict().values()))
    go_on = dict(start=str(tmp_path/'a.safetensors'), **kw)
    hx_classifier(str(tiny/'tiles.lmdb'), str(tmp_path/'c.safetensors'), soften=2., **go_on)
    hx_classifier(str(tiny/'tiles.lmdb'), str(tmp_path/'e.safetensors'), **go_on)
    c, e = (Classifier.load(tmp_path/f'{k}.safetensors') for k in 'ce')
    assert c.report['started'] and (c.report['soften'], e.report['soften']) == (2, 1)
    assert any(not torch.equal(u, v) for u, v in zip(c.model.state_dict().values(), e.model.state_dict().values()))
    with pytest.raises(SystemExit):
        hx_classifier(str(tiny/'tiles.lmdb'), str(tmp_path/'d.safetensors'), reconstructed='colon-64', **kw)
    assert 'a model of 64 px, the tiles have 16' in capsys.readouterr().err
    assert not (tmp_path/'d.safetensors').exists()


def test_the_packaged_model_of_five_classes_draws_and_answers_by_flow():
    ex = Explainer.from_pretrained()
    assert ex.card['name'] == 'colon-128' and sum(f.stat().st_size for f in ex.folder.iterdir()) < 30e6
    assert (ex.size, len(ex.classes)) == (128, 5)
    drawn = ex.sample(range(4), 'healthy')
    p = ex.probabilities(ex.render(drawn)).numpy()
    assert (p.argmax(1) == ex.class_index('healthy')).sum() >= 3
    assert not (drawn.feat[:, None] == ex.reference.feat).flatten(2).all(2).any()      # no layout is borrowed
    asked = [c for c in explain(ex, seeds=range(5), target='healthy') if c.source != 'healthy']
    assert {c.method for c in asked} == {'flow'}                       # its translator is there to be asked by name
    assert len(asked) >= 3 and sum(c.success and c.p >= .9 for c in asked) >= len(asked) - 1
    assert all(c.area > .02 for c in asked if c.success)                               # to be seen, not whispered


def test_a_change_of_the_prior_is_asked_like_a_translator_and_belongs_to_its_prior(tmp_path):
    ex = Explainer.from_pretrained('colon-128')
    assert isinstance(ex.translator, FlowTranslator)
    code = ex.sample(range(6), 'healthy')
    near, far = (translate(ex, code, Ask(0, 4, closeness=c))[0] for c in (1., 0.))
    assert near.w.abs().max() == far.w.abs().max() == 0 and (near.whole < far.whole).mean() > .5
    odds = [Ask(0, 4).odds(ex, moved(ex, code, far, t)).mean() for t in (0 * far.whole, far.whole)]
    assert odds[1] > odds[0] + 1
    given = Explainer.load(ex.export(tmp_path/'given', n=8))
    sizes = [translate(e, code, Ask(0, 4))[0].whole for e in (ex, given)]
    np.testing.assert_allclose(*sizes, rtol=.01)
    with pytest.raises(CheckpointError, match='another kind of network'):
        load_network(Translator, ex.folder/'translator.safetensors')
    prior = tmp_path/'given'/'prior.safetensors'
    weights = load_tensors(prior)
    save_tensors(prior, weights | {'out.bias': weights['out.bias'] + 1}, load_meta(prior))
    with pytest.warns(UserWarning, match='a change of another prior'): other = Explainer.load(tmp_path/'given')
    assert other.translator is None and other.prior is not None
