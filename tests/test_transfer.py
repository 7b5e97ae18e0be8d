"""Training that starts from somebody else's weights."""
from dataclasses import replace
import pytest, torch
from histoxplaining.cli import hx_train
from histoxplaining.networks import Discriminator, Generator, standardised
from histoxplaining.training import TrainConfig, _prepare, train
from test_interop import lively, nvidia_file, to_lineage

SIZES = dict(channel_base=256, channel_max=16)


def prepared(tiny, **kw):
    return _prepare(TrainConfig(data=str(tiny/'tiles.lmdb'), arch='stylegan2', batch=8, **kw), None, None)


def test_a_stylegan2_ada_pickle_is_taken_over_whole(tiny, tmp_path, capsys):
    torch.manual_seed(0)
    G, D = lively(Generator(16, 2, feat_channels=0, map_layers=3, **SIZES)), lively(Discriminator(16, 2, **SIZES))
    store, cfg, _, st = prepared(tiny, init=str(nvidia_file(tmp_path/'theirs.pkl', G, D)), device='cpu')
    z, c, x = torch.randn(4, 512), torch.eye(2)[[0, 1, 0, 1]], torch.randn(4, 3, 16, 16)
    assert (cfg.map_layers, cfg.channel_max) == (3, 16) and 'starts afresh' not in capsys.readouterr().out
    for net in (st.G, st.ema['G']): assert torch.allclose(net(z, c), G(z, c), atol=1e-5)
    assert torch.allclose(st.D.b16(x), D.b16(x), atol=1e-5)
    run = train(TrainConfig(data=str(tiny/'tiles.lmdb'), arch='stylegan2', batch=8, kimg=.016,
        init=str(tmp_path/'theirs.pkl')), tmp_path/'run', quiet=True)
    assert run.latest()['nimg'] == 16


@pytest.mark.parametrize('const', [None, 26])
def test_a_lineage_checkpoint_is_taken_over_and_given_classes(tiny, tmp_path, capsys, const):
    torch.manual_seed(1)
    G = lively(Generator(16, map_layers=3, feat_channels=0, const_channels=const, **SIZES))
    state = to_lineage(G)
    torch.save(state | {'latent_avg': torch.zeros(512)}, tmp_path/'theirs.pt')
    store, cfg, _, st = prepared(tiny, init=str(tmp_path/'theirs.pt'), device='cpu')
    z = torch.randn(3, 512)
    w = G.mapping(z)
    assert cfg.const_channels == const and torch.allclose(st.G.synthesis(w), G.synthesis(w), atol=1e-5)
    # it knew no classes: they begin without effect
    assert torch.allclose(st.G.mapping(z, torch.eye(2)[[0, 1, 0]]), w, atol=1e-4)
    assert 'D starts afresh' in capsys.readouterr().out


def test_weights_that_do_not_fit_are_refused_by_name(tiny, tmp_path):
    G, D = Generator(16, 2, feat_channels=0, **SIZES), Discriminator(16, 2, **SIZES)
    path = nvidia_file(tmp_path/'theirs.pkl', G, D)
    with pytest.raises(ValueError, match=r'G\.\S+: \[.*\] in this configuration, \[.*\] in the weights'):
        prepared(tiny, init=str(path), channel_max=8, device='cpu')
    with pytest.raises(ValueError, match='no such model folder or file'):
        prepared(tiny, init=str(tmp_path/'nowhere.pkl'), device='cpu')


def test_a_packaged_model_is_started_from_by_name(tiny, tmp_path, capsys):
    with pytest.raises(SystemExit):
        hx_train(str(tiny/'tiles.lmdb'), output_path=str(tmp_path/'run'), init='colon-64',
            classifier_ckpt=str(tiny/'classifier.safetensors'))
    said = capsys.readouterr().err
    assert 'its pictures have 64 px' in said and '16: expected a model of 16 px, or of 8 px to grow from' in said


def test_another_layout_code_begins_at_principal_components_and_goes_on_as_it_was(tiny, tmp_path, capsys):
    common = dict(data=str(tiny/'tiles.lmdb'), arch='autoencoder', batch=8, kimg=.016, perceptual='lite0', **SIZES)
    old = train(TrainConfig(**common), tmp_path/'old', tiny/'classifier.safetensors', quiet=True)
    new = TrainConfig(**common | dict(channel_base=None, channel_max=None, init=str(old.path), feat_patch=True,
        feat_channels=12))
    store, cfg, _, st = _prepare(new, None, tiny/'classifier.safetensors')
    x = store.val.tensors(range(8))[0]
    with torch.no_grad():
        feat = st.E.encode(x)[1]
        rows = st.E.patch(x)                       # one constant channel; the others vary with the tile
        G, w = st.ema['G'].synthesis, st.E(x)
        drawn = standardised(G(w, feat, noise_mode='none') - G(w, noise_mode='none'))
    assert rows[:, -1].std() < 1e-6 < rows[:, :-1].std() and torch.allclose(feat.square().mean(1), torch.ones(8, 4, 4))
    assert (drawn * standardised(x)).mean() > .8              # correlation of what the code draws with the tile
    run = train(new, tmp_path/'new', tiny/'classifier.safetensors', quiet=True)
    capsys.readouterr()
    again = train(replace(new, kimg=.032), tmp_path/'new', tiny/'classifier.safetensors', ckpt=str(run.path),
        quiet=True)
    assert again.latest()['nimg'] == 32 and 'starts afresh' not in capsys.readouterr().out
