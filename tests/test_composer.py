"""Answers at the tile's own size: a composer is trained like everything else, and what it draws is judged as it is."""
import shutil
import numpy as np, pytest, torch
from histoxplaining.cli import hx_composer, hx_explain
from histoxplaining.counterfactual import explain
from histoxplaining.explainer import Explainer
from histoxplaining.files import CheckpointError, HxError
from histoxplaining.features import perceptual
from histoxplaining.images import from_uint8, read_image, resize
from histoxplaining.report import caution
from histoxplaining.results import record
from histoxplaining.tiles import TileStore
from histoxplaining.training import TrainConfig, train

SIZES = dict(channel_base=256, channel_max=16, feat_channels=4, map_layers=1)


@pytest.fixture(scope='module')
def model(tiny, tmp_path_factory):
    "A model of 16 px with a translator, both hardly trained, and a store of the same tiles at 64 px."
    root, clf = tmp_path_factory.mktemp('composer'), tiny/'classifier.safetensors'
    common = dict(data=str(tiny/'tiles.lmdb'), batch=8, perceptual='lite0')
    cfg = TrainConfig(arch='autoencoder', kimg=.016, **common, **SIZES)
    run = train(cfg, root/'run', clf, quiet=True)
    Explainer.from_run(run)                                            # leaves reference tiles
    told = TrainConfig(arch='translator', init=str(run.model), kimg=.128, t_lr=.01, **common)
    t = train(told, root/'t', clf, quiet=True)
    shutil.copy(t.model/'translator.safetensors', run.model)
    TileStore.create(tiny/'tiles', root/'large.lmdb', size=64, like=tiny/'tiles.lmdb')
    return run.model


def trained(model, tiny, out, kimg=.016, **kw):
    cfg = TrainConfig(data=str(model.parent.parent/'large.lmdb'), arch='composer', init=str(model), batch=8, kimg=kimg)
    return train(cfg, out, tiny/'classifier.safetensors', quiet=True, **kw)


def weights(folder): return {k: v for k, v in Explainer.load(folder).composer.state_dict().items()}


def test_a_store_like_another_holds_out_the_same_tiles(model, tiny, tmp_path):
    a, b = TileStore(tiny/'tiles.lmdb'), TileStore(model.parent.parent/'large.lmdb')
    assert set(a.val.names) == set(b.val.names) and 0 < len(a.val) < len(a)
    TileStore.create(tiny/'tiles', tmp_path/'part.lmdb', size=16, classes=a.classes[:1], val=0)
    with pytest.raises(HxError, match='tiles are not in it, such as'):
        TileStore.create(tiny/'tiles', tmp_path/'all.lmdb', size=32, like=tmp_path/'part.lmdb')
    assert not (tmp_path/'all.lmdb').exists()


def test_a_composer_that_was_stopped_goes_on_as_if_it_had_not_been(model, tiny, tmp_path):
    whole, part = trained(model, tiny, tmp_path/'whole', .032), trained(model, tiny, tmp_path/'part')
    trained(model, tiny, part.path, .032, ckpt=part.path)
    a, b = weights(whole.model), weights(part.model)
    assert all(torch.equal(a[k], b[k]) for k in a) and a['out.weight'].abs().max() > 0
    old, new = Explainer.load(model), Explainer.load(whole.model)
    for net in ('G', 'E', 'translator'):                               # they are looked at, and stay as they are
        mine = getattr(new, net).state_dict()
        assert all(torch.equal(v, mine[k]) for k, v in getattr(old, net).state_dict().items())
    assert list((whole.path/'samples').glob('composed_*.png')) and 'val_enlarged' in whole.read_log()[-1]
    assert new.size == old.size == 16


def test_what_a_composer_needs_is_named(model, tiny, tmp_path):
    small = TrainConfig(data=str(tiny/'tiles.lmdb'), arch='composer', init=str(model), batch=8, kimg=.016)
    with pytest.raises(HxError, match='tiles of 64 px .hx_tiles --size 64'):
        train(small, tmp_path/'x', tiny/'classifier.safetensors', quiet=True)
    bare = shutil.copytree(model, tmp_path/'bare')
    (bare/'translator.safetensors').unlink()
    cfg = TrainConfig(data=str(model.parent.parent/'large.lmdb'), arch='composer', init=str(bare), batch=8, kimg=.016)
    with pytest.raises(CheckpointError, match='no translator.safetensors: a composer learns from what it answers'):
        train(cfg, tmp_path/'y', tiny/'classifier.safetensors', quiet=True)
    ex, tile = Explainer.load(model), np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(HxError, match='native: this model has no composer'): explain(ex, [tile], native=True)
    ex.composer = object()
    with pytest.raises(HxError, match='leave out carry='): explain(ex, [tile], carry=True, native=True)


def test_answers_have_the_size_of_their_tiles_and_are_judged_there(model, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = Explainer.load(model).export(tmp_path/'own', n=40)
    hx_composer(str(own), str(model.parent.parent/'large.lmdb'), kimg=.016, batch=8, output_path=str(tmp_path/'run'),
        save=True)
    ex = Explainer.load(own)
    rng, small = np.random.default_rng(0), [read_image(p) for p in sorted((tiny/'tiles').rglob('*.png'))[::6]]
    tiles = [np.kron(a, np.ones((k, k, 1), np.uint8)) for a, k in zip(small, (1, 3, 4, 5, 3, 4, 5, 3, 4, 5))]
    tiles = [(a * .9 + rng.integers(0, 20, a.shape)).astype(np.uint8) for a in tiles]
    kw = dict(p=.5, refine=0, frames=4, hold=())
    plain, native = (explain(ex, tiles, native=n, **kw) for n in (False, True))
    assert any(c.native for c in native) and all(not c.native for c in plain)
    for tile, was, cf in zip(tiles, plain, native):
        if not was.success: continue
        assert cf.success                                              # nothing is lost
        if not cf.native:
            assert (cf.counterfactual == was.counterfactual).all() and cf.smaller.code in ('native', 'reconstruction')
            assert cf.smaller in caution(cf) and record(cf)['smaller'] == cf.smaller
            continue
        side = 64 if len(tile) == 16 else len(tile)                    # nothing to keep: all is drawn
        assert not cf.smaller and cf.reconstruction.shape == (side, side, 3) and (cf.original == tile).all()
        # as a file of that picture would be read
        files = np.stack([resize(a, ex.classifier.size) for a in cf.frames])
        p = ex.probabilities(files)[:, cf.classes.index(cf.target)].numpy()
        assert np.allclose(cf.frame_p, p, atol=1e-5) and (cf.frames[0] == cf.reconstruction).all()
        assert abs(p[0] - cf.p_reconstruction) < 1e-5 and record(cf)['native']
        assert cf.p >= .5 and abs(p[-1] - cf.p) < 1e-5 and cf.heatmap.shape == (side, side)
        if side != len(tile): continue
        same = (cf.counterfactual == tile).all(-1)
        assert ((cf.reconstruction == tile).all(-1) >= same).mean() > .99         # the same region
    for tile, asked, cf in zip(tiles, native, explain(ex, tiles, **kw)):          # by default where a tile is larger
        assert cf.native == (asked.native and len(tile) > 16)
        assert cf.smaller == (asked.smaller if len(tile) > 16 else '')
    seeds = explain(ex, seeds=[1, 2, 3], p=.5, native=True)
    assert all(c.reconstruction.shape == (64, 64, 3) and c.original is None for c in seeds if c.native)
    hx_explain(str(own), [str(tiny/'tiles')], n=4, native=1, p=.5, out=str(tmp_path/'r.html'))
    assert (tmp_path/'r.html').stat().st_size > 10_000


def test_the_packaged_composer_keeps_the_tile_and_the_answer(shared, tmp_path):
    paths = [p for c in ('healthy', 'adenocarcinoma') for p in sorted((shared/'data'/'colon'/c).glob('*.jpg'))[:8]]
    ex = Explainer.from_pretrained('colon-64')
    small, own = explain(ex, paths, native=False), explain(ex, paths)      # a file is larger: composed without asking
    good = [(p, a, b) for p, a, b in zip(paths, small, own) if a.success and b.success]
    assert len(good) >= 12 and all(b.success == a.success for a, b in zip(small, own))
    assert all(b.native or b.smaller for _, a, b in good)
    good = [v for v in good if v[2].native]
    assert len(good) >= 11
    for path, a, b in good:
        tile = read_image(path)
        assert b.counterfactual.shape == tile.shape and b.p >= .9 > .5 > b.p_reconstruction and 0 < b.redrawn <= 1
    # redrawn as they were, they are nearer to the tiles than the enlarged reconstructions are
    like, x = perceptual(), [from_uint8(np.stack([read_image(p) for p, *_ in good]))]
    x += [from_uint8(np.stack(v)) for v in ([b.reconstruction for *_, b in good],
        [resize(a.reconstruction, 224) for _, a, _ in good])]
    with torch.no_grad(): near, far = (like(x[0], y).mean() for y in x[1:])
    assert near < (.8 if type(like).__name__ == 'LPIPS' else 1) * far
    hx_explain('colon-64', [str(paths[0])], png=str(tmp_path/'png'), out=str(tmp_path/'r.html'))
    assert read_image(tmp_path/'png'/paths[0].with_suffix('.png').name).shape == (224, 224, 3)
