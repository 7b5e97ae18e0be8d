"""Whole slides: from a pyramidal TIFF with annotations to a store of tiles that know their places, and back as
GeoJSON."""

import json
import numpy as np, pytest
from PIL import Image
from histoxplaining.cli import hx_explain, hx_tiles
from histoxplaining.explainer import Code, Explainer
from histoxplaining.files import HxError
from histoxplaining.images import resize
from histoxplaining.slides import Slide, place_of
from histoxplaining.tiles import TileStore

tifffile = pytest.importorskip('tifffile')
pytest.importorskip('openslide')
SIDE = 224


def polygon(x, y, w, h, name):
    return dict(type='Feature', geometry=dict(type='Polygon',
        coordinates=[[[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]]),
        properties=dict(objectType='annotation', classification=dict(name=name)))


@pytest.fixture(scope='module')
def slide(tmp_path_factory):
    """2,240 px: eight by eight squares of tissue that the packaged model drew, glass around them, three levels; one
    half annotated healthy, the other adenocarcinoma."""
    root, ex = tmp_path_factory.mktemp('slide'), Explainer.from_pretrained('colon-64')
    seeds = list(range(96))
    pics = ex.render(ex.sample(seeds))
    says = ex.probabilities(pics).argmax(1).numpy()
    of = [np.flatnonzero(says == k) for k in (0, 1)]
    big = lambda i: np.asarray(Image.fromarray(pics[i]).resize((SIDE, SIDE), Image.BICUBIC))
    img = np.full((10 * SIDE, 10 * SIDE, 3), 244, np.uint8)
    for r in range(8):
        for c in range(8):
            k = int(c >= 4)
            img[(r + 1) * SIDE:(r + 2) * SIDE, (c + 1) * SIDE:(c + 2) * SIDE] = big(of[k][(4 * r + c % 4) % len(of[k])])
    path = root/'s1.tif'
    with tifffile.TiffWriter(path) as t:
        for k, f in enumerate((1, 2, 4)):
            t.write(img if f == 1 else np.asarray(Image.fromarray(img).resize((len(img) // f,) * 2, Image.BOX)),
                tile=(256, 256), compression='zlib', photometric='rgb', subfiletype=int(k > 0),
                resolution=(20000 / f, 20000 / f), resolutionunit='CENTIMETER')
    (root/'s1.geojson').write_text(json.dumps(dict(type='FeatureCollection',
        features=[polygon(SIDE, SIDE, 4 * SIDE, 8 * SIDE, 'healthy'),
        polygon(5 * SIDE, SIDE, 4 * SIDE, 8 * SIDE, 'adenocarcinoma')])))
    return path


@pytest.fixture(scope='module')
def store(slide, tmp_path_factory):
    path = tmp_path_factory.mktemp('store')/'slide.lmdb'
    hx_tiles(str(slide), str(path), size=64, mpp=.5, tile=SIDE, annotations=str(slide.parent/'s1.geojson'))
    return TileStore(path)


def test_tiles_know_place_class_and_slide(slide, store):
    assert store.counts == dict(adenocarcinoma=32,
        healthy=32) and store.manifest['groups'] == ['s1.tif'] and len(store.val)
    assert store.mpp == pytest.approx(.5 * SIDE / 64)
    file = Slide(slide)
    for i in range(0, len(store), 9):
        name, x, y, side = place_of(store.names[i])
        assert (name, side) == ('s1.tif', SIDE) and x % SIDE == y % SIDE == 0
        assert store.classes[store[i][1]] == ('healthy' if x < 5 * SIDE else 'adenocarcinoma')
        assert np.abs(store[i][0].astype(int) - resize(file.region(x, y, side, SIDE), 64)).max() <= 1


def test_explained_tiles_come_back_to_the_slide(store, tmp_path, capsys):
    hx_explain('colon-64', [str(store.path)], n=6, out=str(tmp_path/'r.html'), geojson=str(tmp_path/'o.geojson'),
        csv=str(tmp_path/'t.csv'), frames=0)
    features = json.loads((tmp_path/'o.geojson').read_text())['features']
    assert len(features) == 6
    for f in features:
        p, ring = f['properties'], f['geometry']['coordinates'][0]
        assert p['objectType'] == 'tile' and p['classification']['name'] in ('healthy',
            'adenocarcinoma') and ring[0] == ring[-1] and ring[2][0] - ring[0][0] == SIDE
        assert 0 <= p['measurements']['p_original'] <= 1 and (p['measurements']['turned'] or p['metadata']['reason'])


def test_a_killed_build_goes_on(slide, tmp_path, monkeypatch, capsys):
    region, count = Slide.region, [0]
    def counted(self, x, y, side, size):
        count[0] += 1
        if count[0] == 64 + 3: raise KeyboardInterrupt
        return region(self, x, y, side, size)
    monkeypatch.setattr(Slide, 'region', counted)
    kw = dict(size=32, tile=112, mpp=.5, workers=1)
    with pytest.raises(KeyboardInterrupt): TileStore.create(slide, tmp_path/'s.lmdb', **kw)
    assert not (tmp_path/'s.lmdb').exists()
    capsys.readouterr()
    before, store = count[0], TileStore.create(slide, tmp_path/'s.lmdb', **kw)
    # the first chunk was not read again
    assert 'going on with an interrupted build' in capsys.readouterr().out and len(store) == 256
    assert count[0] - before == 256 - 64
    assert len(set(store.names)) == 256


def test_what_is_missing_is_said(slide, tmp_path):
    with pytest.raises(HxError, match='no s1.geojson'): TileStore.create(slide, tmp_path/'a.lmdb', annotations=tmp_path)
    plain = tmp_path/'plain.tif'
    tifffile.imwrite(plain, np.full((512, 512, 3), 200, np.uint8), tile=(256, 256), photometric='rgb')
    with pytest.raises(HxError, match='slide_mpp'): Slide(plain)
    assert Slide(plain, .25).mpp == .25
