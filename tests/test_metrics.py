"""Image-set metrics against closed forms, against torch-fidelity and reference numbers; on shards, on sets that are
odd or wrong, and on the command line."""

import contextlib, io, json, pickle, shutil, warnings
from unittest import mock
import numpy as np, pytest, torch
import histoxplaining.features as rooms
from histoxplaining.checkpoints import save_model
from histoxplaining.cli import hx_fid, hx_inception
from histoxplaining.features import Features, FeatureSet, feature_set, features, generated, picture_set
from histoxplaining.files import HxError, load_meta, save_tensors
from histoxplaining.images import write_png
from histoxplaining.measured import Results
from histoxplaining.metrics import (Moments, compare, density_coverage, frechet_distance, kid, load_statistics,
    lpips, memorisation, merge_statistics, ms_ssim, perceptual_path_length,
    precision_recall, save_statistics, separability, set_statistics)
from histoxplaining.networks import Generator
from histoxplaining.synthetic import synthetic_tiles
from histoxplaining.tiles import TileStore

pytestmark = pytest.mark.filterwarnings('ignore:.*mostly bias')
rng = np.random.default_rng(0)
COLOUR = features(lambda x: torch.cat([x.mean((2, 3)), x.std((2, 3))], 1), name='colour', device='cpu')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv('HX_CACHE', str(tmp_path/'cache'))


@pytest.fixture(scope='module')
def inception(tmp_path_factory):
    "The reference network with random weights (of a size that keeps the signal alive), in a file."
    from torch_fidelity import feature_extractor_inceptionv3 as ref
    path = tmp_path_factory.mktemp('inception')/'w.pth'
    with mock.patch.object(ref, 'load_state_dict_from_url', lambda *a,
            **k: {}), mock.patch.object(ref.FeatureExtractorInceptionV3, 'load_state_dict', lambda self, sd: None):
        net = ref.FeatureExtractorInceptionV3('random', ['2048'])
    g = torch.Generator().manual_seed(0)
    for m in net.modules():
        if isinstance(m, torch.nn.Conv2d): m.weight.data.normal_(std=(2 / m.weight[0].numel())**.5, generator=g)
    torch.save(net.state_dict(), path)
    return path


# ------------------------------------------------------------------------------------------- agreement with others

@pytest.mark.parametrize('size', [64, 299])
def test_equal_to_torch_fidelity(inception, size, tmp_path):
    "The same pictures and the same weights, smaller than the network's 299 px and of its own size."
    from torch_fidelity import calculate_metrics
    from torch_fidelity.metric_prc import calculate_precision_recall_full
    n = 12 if size == 64 else 6
    sets = [synthetic_tiles(n, size, seed=0)[0], synthetic_tiles(n, size, seed=1, cause='stain')[0]]
    for name, imgs in zip('ab', sets):
        for i, im in enumerate(imgs): write_png(tmp_path/name/f'{i:02d}.png', im)
    f = features('inception', weights=inception, device='cpu')
    a, b = (feature_set(tmp_path/name, f) for name in 'ab')
    # their square root takes half a minute: once is enough
    fid = dict(fid=True) if size == 64 else {}
    want = calculate_metrics(input1=str(tmp_path/'b'), input2=str(tmp_path/'a'), kid=True, kid_subsets=1,
        kid_subset_size=n, cuda=False, verbose=False, cache=False, save_cpu_ram=True,
        feature_extractor_weights_path=str(inception), **fid)
    if fid: assert frechet_distance(a, b) == pytest.approx(want['frechet_inception_distance'], rel=1e-3)
    assert kid(a, b, size=n) == pytest.approx(want['kernel_inception_distance_mean'], rel=1e-3)
    assert tuple(precision_recall(a, b).values()) == pytest.approx(calculate_precision_recall_full(torch.tensor(b.x),
        torch.tensor(a.x)), abs=1e-6)
    # with other than the published weights it is not the FID
    assert frechet_distance(a, b).record['metric'].startswith('fd_inception_')


def test_the_published_weights_make_it_the_fid(inception, monkeypatch):
    monkeypatch.setattr(rooms, 'INCEPTION_SHA256', rooms.sha256(inception))
    f = features('inception', weights=inception, device='cpu')
    x = rng.standard_normal((2, 30, 4))
    assert frechet_distance(FeatureSet(x[0], f), FeatureSet(x[1], f)).record['metric'] == 'fid' and kid(*x,
        f).record['metric'] == 'kid'
    assert frechet_distance(*x, 'inception').record['metric'] == 'fd_inception'  # a name alone proves nothing


def test_the_toy_number_of_the_lineage(shared):
    r = np.random.RandomState(7)
    a, b = r.standard_normal((200, 8)), r.standard_normal((200, 8)) * 1.3 + .2
    want = json.loads((shared/'reference'/'golden'/'lineage_32.json').read_text())['fid_toy']['fid']
    assert abs(frechet_distance(a, b) - want) < 1e-8


def test_density_and_coverage_by_their_definition():
    x, y = rng.standard_normal((60, 5)), rng.standard_normal((40, 5)) * 1.2
    d = lambda u, v: np.linalg.norm(u[:, None] - v, axis=2)
    radius = np.sort(d(x, x), 1)[:, 5]
    inside = d(y, x) <= radius
    assert density_coverage(x, y) == pytest.approx(dict(density=inside.sum() / 5 / 40,
        coverage=(d(x, y).min(1) <= radius).mean()))


# ----------------------------------------------------------------------------------------------------- properties

@pytest.mark.parametrize('n,d', [(300, 5), (300, 64), (20, 64), (64, 64), (65, 64), (2, 8)])
def test_properties_of_the_distance(n, d):
    x, y = rng.standard_normal((n, d)) * rng.uniform(.1, 3, d), rng.standard_normal((n + 3, d)) + .5
    f = lambda a, b: float(frechet_distance(a, b))
    scale = f(x, y)
    assert f(x, x) < 1e-5 * scale
    assert abs(f(x, x + 2) - 4 * d) < 1e-5 * scale
    assert abs(f(x, y) - f(y, x)) < 1e-5 * scale
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    assert abs(f(x @ Q, y @ Q) - scale) < 1e-5 * scale
    # another way to the same trace
    root = np.linalg.svd((x - x.mean(0)) @ (y - y.mean(0)).T / np.sqrt((n - 1) * (n + 2)), compute_uv=False).sum()
    direct = ((x.mean(0) - y.mean(0))**2).sum() + np.cov(x.T).trace() + np.cov(y.T).trace() - 2 * root
    assert abs(scale - direct) < 1e-5 * scale
    assert kid(x @ Q, y @ Q, size=n) == pytest.approx(kid(x, y, size=n), rel=1e-6)


def test_few_against_many_is_the_same_with_and_without_the_short_form():
    few, many = rng.standard_normal((30, 50)), rng.standard_normal((200, 50)) * 1.5
    a, b = Moments.of(few), Moments.of(many)
    assert a.rows is not None and b.rows is None
    assert frechet_distance(Moments(30, a.mean, a.cov * 29), b) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_shards_merge_to_one_pass(tmp_path):
    x = rng.standard_normal((1000, 12)) + 50
    whole = Moments.of(x)
    for parts in (Moments.of(x[:10]) + Moments.of(x[10:700]) + Moments.of(x[700:]), Moments.of(x, chunk=64),
            Moments.of(x, chunk=5)):
        assert parts.n == 1000 and np.abs(parts.mean - whole.mean).max() < 1e-10 and np.abs(parts.cov -
            whole.cov).max() < 1e-10
    tiles = synthetic_tiles(30, 16, seed=0)[0]
    once, shards = set_statistics(tiles, COLOUR), [set_statistics(tiles, COLOUR, shard=(i, 4)) for i in range(4)]
    merged = merge_statistics(shards[::-1])
    assert np.abs(merged.moments.cov - once.moments.cov).max() < 1e-10 and all(np.abs(a.cov - b.cov).max() < 1e-10
        for a, b in zip(merged.halves, once.halves))
    assert np.array_equal(merged.sample, once.sample) and len(merged) == 30
    save_statistics(tmp_path/'s.safetensors', merged)
    assert frechet_distance(load_statistics(tmp_path/'s.safetensors'), tiles, COLOUR) < 1e-8
    for bad, why in ((shards[:3], 'expected each of 0/4'), (shards + shards[:1], 'expected each of 0/4'),
            ([*shards[:3], set_statistics(tiles[:29], COLOUR, shard=(3, 4))], 'of different things')):
        with pytest.raises(HxError, match=why): merge_statistics(bad)


def test_batch_size_does_not_change_the_value():
    f = features('lite0', size=32, device='cpu')
    a, b = synthetic_tiles(24, 32, seed=0)[0], synthetic_tiles(24, 32, seed=1)[0]
    values = [float(frechet_distance(f(a, batch=n), f(b, batch=n))) for n in (1, 7, 24)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-4)
    torch.manual_seed(0)
    G = Generator(16, channel_base=256, channel_max=16).eval()
    drawn = generated(G, 20)
    assert np.abs(np.concatenate([drawn.read([i]) for i in range(20)]).astype(int) - drawn.read(range(20))).max() <= 1


def test_kernel_distance_has_no_bias():
    a, b = rng.standard_normal((2000, 4)), rng.standard_normal((2000, 4))
    # twenty tests with 100 pictures each
    values = [float(kid(a[i::20], b[i::20], subsets=20, seed=i)) for i in range(20)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(20)
    assert kid(a[:200], b[:200] + .5, subsets=20) > 5 * np.std(values)


def test_excess_has_no_bias_and_the_floor_tells_the_bias():
    """Twenty perfect generators: the distance is far from 0, its excess is not, in all dimensions and on principal
    components."""
    d = 80
    records = [frechet_distance(rng.standard_normal((120, d)) * np.linspace(1, 3, d),
        rng.standard_normal((60, d)) * np.linspace(1, 3, d), seed=i).record for i in range(20)]
    for key, floor in (('excess', 'floor'), ('pca_excess', 'pca_floor')):
        v = np.array([r[key] for r in records])
        assert abs(v.mean()) < 4 * v.std() / np.sqrt(20) and np.mean([r[floor] for r in records]) > 10 * abs(v.mean())
    assert all(r['floor_n'] == 60 and r['pca_components'] == 64 and r['pca'] < r['value'] for r in records)


def test_interval_covers_another_draw():
    draw = lambda: (rng.standard_normal((500, 3)), rng.standard_normal((500, 3)) + .5)
    truth = .75
    inside = [lo < truth + .01 and truth < hi for lo,
        hi in (frechet_distance(*draw()).record['interval'] for _ in range(20))]
    assert sum(inside) >= 14


def test_a_warning_where_there_is_mostly_bias():
    with pytest.warns(UserWarning, match='mostly bias'):
        frechet_distance(rng.standard_normal((9, 8)), rng.standard_normal((99, 8)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert 'warning' not in frechet_distance(rng.standard_normal((16, 8)), rng.standard_normal((99, 8))).record


def test_constant_pictures():
    flat = lambda v, n=8: np.full((n, 16, 16, 3), v, np.uint8)
    assert frechet_distance(flat(0), flat(255), COLOUR) == pytest.approx(12, abs=1e-6)
    assert frechet_distance(flat(9), flat(9), COLOUR) == 0 and kid(flat(9), flat(9), COLOUR) == pytest.approx(0,
        abs=1e-9)
    assert set(precision_recall(flat(9), flat(9), COLOUR).values()) | set(density_coverage(flat(9), flat(9),
        COLOUR).values()) <= {1., 8 / 5}
    assert precision_recall(flat(9), flat(200), COLOUR)['precision'] == 0 and ms_ssim(flat(9),
        flat(9)) == pytest.approx(1, abs=1e-5)


# --------------------------------------------------------------------------------------------------- what is wrong

def test_what_is_wrong_is_named(tiny, tmp_path):
    nan = np.ones((5, 3)); nan[3, 1] = np.nan
    store = TileStore(tiny/'tiles.lmdb')
    one_class = store.subset(np.flatnonzero(store.labels == 0))
    for i, s in enumerate((16, 16, 20)): write_png(tmp_path/'mixed'/f'{i}.png', synthetic_tiles(1, s, seed=i)[0][0])
    (tmp_path/'empty').mkdir()
    broken = features(lambda x: torch.full((len(x), 3), float('nan')), name='broken')
    for bad, why in ((lambda: frechet_distance(nan, nan), 'vector 3'),
            (lambda: kid(nan, nan), 'vector 3 is not finite'),
            (lambda: frechet_distance(np.ones((1, 3)), np.ones((4, 3))), 'two pictures'),
                     (lambda: frechet_distance(np.ones((4, 3)), np.ones((4, 2))), 'not the same features'),
                         (lambda: frechet_distance(store, store), 'together with features='),
                     (lambda: frechet_distance(store, store, broken), 'features of picture 0 are not finite'),
                         (lambda: compare(store, one_class, COLOUR), 'no pictures of class tumour'),
                     (lambda: compare(store, store.subset([0, 1, 2]), COLOUR), 'at least 4'),
                         (lambda: frechet_distance(tmp_path/'mixed', store, COLOUR),
                         r'2.png: 20x20 pixels, but .*0.png has 16x16'),
                     (lambda: frechet_distance(tmp_path/'empty', store, COLOUR), 'no pictures'),
                         (lambda: COLOUR([np.zeros((4, 4, 3), np.uint8), np.zeros((5, 5, 3), np.uint8)]),
                         'different sizes'),
                     (lambda: picture_set([np.zeros((4, 4, 3), np.uint8), np.zeros((5, 5, 3), np.uint8)]),
                         'different sizes'), (lambda: COLOUR(np.zeros((2, 4, 4, 1), np.uint8)), 'expected uint8'),
                     (lambda: kid(np.ones((5, 3)), np.ones((5, 3)), size=9), 'subsets of 9'),
                         (lambda: precision_recall(np.ones((3, 2)), np.ones((9, 2))), 'at least 4'),
                         (lambda: features('resnet18'), 'no weights on this machine'),
                     (lambda: separability(nan, [0, 1, 0, 1, 0]), 'picture 3 are not finite'),
                             (lambda: ms_ssim(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.uint8)),
                             '11 pixels')):
        with pytest.raises(HxError, match=why): bad()


def test_features_that_differ_are_not_compared(tiny):
    a, b = (feature_set(tiny/'tiles.lmdb', features(lambda x: x.mean((2, 3)), name='mean', size=s)) for s in (16, 32))
    with pytest.raises(HxError, match='not looked at with the same features'): frechet_distance(a, b)
    with pytest.raises(HxError, match='was looked at with'): kid(a, a, COLOUR)


class _Hostile:
    def __reduce__(self): return eval, ("open('executed', 'w')",)

def test_weights_are_never_executed(tmp_path, monkeypatch, inception):
    monkeypatch.chdir(tmp_path)
    torch.save({'fc.weight': _Hostile()}, tmp_path/'w.pth')
    with pytest.raises(HxError, match='was not executed'): features('inception', weights=tmp_path/'w.pth')
    (tmp_path/'inception_x.pkl').write_bytes(pickle.dumps({'mean': _Hostile(), 'cov': 1}))
    with pytest.raises(HxError, match='refused'): load_statistics(tmp_path/'inception_x.pkl')
    assert not (tmp_path/'executed').exists()
    torch.save({k: v for k, v in torch.load(inception, weights_only=True).items() if k != 'fc.bias'}, tmp_path/'w.pth')
    with pytest.raises(HxError, match='w.pth: does not fit the reference Inception network'):
        features('inception', weights=tmp_path/'w.pth')


def test_inception_is_downloaded_only_when_asked_and_only_as_published(tmp_path, monkeypatch):
    monkeypatch.setenv('HX_WEIGHTS', str(tmp_path)); monkeypatch.setattr(torch.hub, 'get_dir',
        lambda: str(tmp_path/'hub'))
    asked = []
    monkeypatch.setattr(rooms, 'fetch', lambda url, path, **kw: asked.append((url, path, kw)) or path)
    with pytest.raises(HxError, match='download=True, --download'): features('inception')
    assert not asked
    rooms.inception_weights(download=True)
    (url, path, kw), = asked
    assert url.startswith('https://') and path == tmp_path/'hub'/'checkpoints'/rooms.INCEPTION[0]
    assert kw['checksum'] == f'sha256:{rooms.INCEPTION_SHA256}'
    assert rooms.INCEPTION_SHA256.startswith(path.stem.split('-')[-1])


# ------------------------------------------------------------------------------------------- provenance, cache, files

def test_a_record_says_what_was_measured(tiny, tmp_path):
    torch.manual_seed(0)
    G = Generator(16, c_dim=2, channel_base=256, channel_max=16).eval()
    store = TileStore(tiny/'tiles.lmdb')
    found = compare(store.train, generated(G, 40, classes=store.classes, seed=3), COLOUR)
    r = found['fd_colour', 'tumour'].record
    assert r['n'] == (store.train.counts['tumour'],
        20) and r['class'] == 'tumour' and r['split'] == 'train'
    assert r['data'] == store.train.hash[:12] and r['fake_seed'] == 3 and r['version']
    assert 'PNG of 16x16 px' in r['data_history'] and 'drawn at 16 px' in r['fake_history'] and len(r['model']) == 12
    assert r['weights'] == COLOUR.weights and r['resize'] == 'none'
    assert {'floor', 'floor_n', 'excess', 'interval', 'pca', 'pca_interval'} <= r.keys()
    with torch.no_grad(): next(G.parameters()).add_(1)
    assert generated(G, 40).about['model'] != r['model']
    found.save(tmp_path/'m.jsonl'); found.save(tmp_path/'m.jsonl')
    again = Results.load(tmp_path/'m.jsonl')
    assert len(again) == 2 * len(found) == 42 and [repr(a) for a in again[:21]] == [repr(a)
        for a in found] and pickle.loads(pickle.dumps(found[0])).record == again[0].record
    (tmp_path/'m.jsonl').write_text('words\n' + (tmp_path/'m.jsonl').read_text())
    with pytest.raises(HxError, match='line 1 is not a measurement'): Results.load(tmp_path/'m.jsonl')
    assert '| fd_colour |' in found.table() and '| all | benign | tumour |' in found.table()


def test_real_statistics_are_cached_by_content(tiny, tmp_path):
    seen = []
    f = features(lambda x: seen.append(len(x)) or x.mean((2, 3)), name='counted')
    n = len(TileStore(tiny/'tiles.lmdb').val)
    shutil.copytree(tiny/'tiles.lmdb', tmp_path/'copy.lmdb')
    a, b = feature_set(tiny/'tiles.lmdb', f), feature_set(tmp_path/'copy.lmdb', f)
    assert seen == [60] and np.array_equal(a.x, b.x)
    feature_set(TileStore(tiny/'tiles.lmdb').val, f); feature_set(TileStore(tiny/'tiles.lmdb').val, f)
    assert sum(seen) == 60 + n                                                # another selection is another set
    shutil.copytree(tiny/'tiles', tmp_path/'tiles')
    feature_set(tmp_path/'tiles', f); feature_set(tmp_path/'tiles', f)
    assert sum(seen) == 120 + n
    write_png(next((tmp_path/'tiles').rglob('*.png')), np.zeros((16, 16, 3), np.uint8))
    feature_set(tmp_path/'tiles', f)
    # one picture changed: all of it is looked at again
    assert sum(seen) == 180 + n


def test_statistics_that_are_damaged_or_foreign(tmp_path):
    (tmp_path/'inception_old.pkl').write_bytes(pickle.dumps({'mean': np.arange(6.), 'cov': np.eye(6) * 2, 'size': 64,
        'path': 'data/old.lmdb'}))
    s = load_statistics(tmp_path/'inception_old.pkl')
    x = rng.standard_normal((400, 6))
    want = frechet_distance(Moments(2, np.arange(6.), np.eye(6) * 2), x)
    assert frechet_distance(s, x) == pytest.approx(want) and frechet_distance(s,
        x).record['metric'] == 'fd_inception_foreign' and frechet_distance(s, x).record['n'][0] is None
    save_tensors(tmp_path/'other.safetensors', {'w': torch.zeros(2)})
    with pytest.raises(HxError, match='holds no statistics'): load_statistics(tmp_path/'other.safetensors')
    (tmp_path/'cut.safetensors').write_bytes((tmp_path/'other.safetensors').read_bytes()[:40])
    with pytest.raises(HxError, match='cut.safetensors'): load_statistics(tmp_path/'cut.safetensors')


# ------------------------------------------------------------------------------------------ copies, paths, codes, pairs

def test_copies_are_found_in_every_view():
    tiles = synthetic_tiles(80, 32, seed=0)[0]
    # sees where things are
    grid = features(lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 8).flatten(1), name='grid')
    views = np.stack([np.rot90(tiles[k][:, ::-1] if k > 3 else tiles[k], k % 4) for k in range(8)])
    m = memorisation(tiles[:60], np.concatenate([views, tiles[60:]]), grid)
    assert {(i, j) for i, j, *_ in m.record['pairs']} == {(k, k) for k in range(8)} and max(d for *_,
        d in m.record['pairs']) < 1e-4 and m >= 8 / 28
    assert memorisation(tiles[:60], tiles[60:], grid) <= .1


def test_path_length_of_a_linear_generator():
    class Line(torch.nn.Module):
        z_dim, c_dim = 4, 0
        def __init__(self):
            super().__init__(); self.A = torch.nn.Parameter(torch.randn(3 * 64, 4,
                generator=torch.Generator().manual_seed(0)))
        def mapping(self, z, c): return z
        def synthesis(self, w, noise_mode): return (w @ self.A.T).view(-1, 3, 8, 8)
    G = Line()
    p = perceptual_path_length(G, 3000, distance=lambda x, y: (x - y).square().sum([1, 2, 3]), epsilon=.1)
    assert p == pytest.approx(2 * G.A.square().sum().item(), rel=.06)
    assert p.record['interval'][0] < p < p.record['interval'][1]


def test_separability_tells_signal_from_stain_from_chance():
    n = 300
    y, stain = rng.integers(0, 3, n), rng.integers(0, 4, n)
    noise = rng.standard_normal((n, 40))
    signal, colour = noise + 3 * np.eye(3)[y] @ np.eye(3,
        40), noise + 5 * np.eye(4)[np.where(rng.random(n) < .8, y, stain)] @ np.eye(4, 40)
    chance, real = separability(noise, y), separability(signal, y, stain=stain)
    for m in chance: assert abs(m - m.record['permuted'][0]) < 4 * m.record['permuted'][1] + .02 and m.record['p'] > .04
    for m in real:
        assert m > m.record['permuted'][0] + 3 * m.record['permuted'][1]
        assert m.record['matched_value'] > m.record['matched_permuted'][0] + 2 * m.record['matched_permuted'][1]
    confounded = separability(colour, y, stain=np.where(rng.random(n) < .8, y, stain), rgb=colour[:, :6])
    assert confounded['probe_auc'] > .8 and confounded['probe_auc'].record['rgb'] > .8
    scaled = separability(signal * rng.uniform(.1, 9, 40) + 7, y, stain=stain)
    # units do not matter
    assert [float(m) for m in scaled] == pytest.approx([float(m) for m in real], abs=1e-6)
    assert separability({'a': signal[:, :20], 'b': signal[:, 20:]}, y)[0] == pytest.approx(real[0])
    assert separability(signal, y, stain=y)[0].record['clusters'] == 0


def test_matched_stain_takes_a_stain_effect_away():
    n = 400
    y = rng.integers(0, 2, n)
    stain = np.where(rng.random(n) < .8, y, 1 - y)
    codes = rng.standard_normal((n, 10)) + 4 * stain[:, None]
    r = separability(codes, y, stain=stain)['probe_auc'].record
    assert r['value'] > .7 and abs(r['matched_value'] - .5) < .12


def test_pairs(shared, monkeypatch):
    a, b = synthetic_tiles(3, 64, seed=0)[0], synthetic_tiles(3, 64, seed=1)[0]
    assert ms_ssim(a, a) == pytest.approx(1, abs=1e-5) and 0 <= ms_ssim(a, b) < .7 and ms_ssim(a,
        b).record['metric'] == 'ms_ssim3'
    monkeypatch.setenv('HX_WEIGHTS', str(shared/'weights'))
    assert lpips(a, a) == pytest.approx(0, abs=1e-6) and lpips(a, b) > .1 and len(lpips(a, b).values) == 3
    assert lpips(a, b) == pytest.approx(np.mean([float(lpips(u, v)) for u, v in zip(a, b)]), rel=1e-4)


# ------------------------------------------------------------------------------------------------------ command line

def hx(command, *args, **kw):
    "Call a console script; returns (status, what it printed, last line of its errors)."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: status = command(*map(str, args), **kw) or 0
        except SystemExit as e: status = e.code
    return status, out.getvalue(), (err.getvalue().strip().splitlines() or [''])[-1]


def test_published_commands(tiny, tmp_path, monkeypatch, inception):
    "hx_inception DATASET --filter_label NAME, then hx_fid --inception FILE CHECKPOINT."
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path/'model', Generator(16, c_dim=2, channel_base=256, channel_max=16), None, None,
        dict(name='m', arch='stylegan2', classes=['benign', 'tumour'], nimg=0, noise=True))
    status, out, err = hx(hx_inception, tiny/'tiles.lmdb', filter_label='benign', weights=str(inception), n_sample=8)
    assert status == 0 and (tmp_path/'inception_tiles_benign.json').exists(), err
    about = load_meta(tmp_path/'inception_tiles_benign.safetensors')['about']
    assert about['class'] == 'benign' and about['split'] == 'val' and about['features'].startswith('inception_')
    status, out, err = hx(hx_fid, tmp_path/'model', inception='inception_tiles_benign.safetensors',
        weights=str(inception), n_sample=8)
    assert status == 0 and out.startswith('fd_inception_'), err
    r = Results.load(tmp_path/'model'/'metrics.jsonl')[0].record
    assert r['class'] == 'benign' and r['checkpoint'] == 'model' and r['n'][1] == 8
    status, _, err = hx(hx_fid, tmp_path/'model', inception='inception_tiles_benign.safetensors',
        weights=str(tmp_path/'absent.pth'))
    assert status == 2 and 'absent.pth' in err


def test_checkpoints_of_the_lineage_are_measured(tiny, tmp_path):
    from test_interop import lineage_networks, to_lineage
    torch.save(to_lineage(*lineage_networks(0)), tmp_path/'000010.pt')
    assert hx(hx_inception, tiny/'tiles', features='lite0', size=32, out=str(tmp_path/'s.safetensors'))[0] == 0
    status, out, err = hx(hx_fid, tmp_path/'000010.pt', inception=str(tmp_path/'s.safetensors'), n_sample=12)
    assert status == 0 and '\nfd_lite0 ' in out and (tmp_path/'metrics.jsonl').exists(), err
    # the tiles are the tiles
    assert hx(hx_fid, tiny/'tiles.lmdb', inception=str(tmp_path/'s.safetensors'),
        out=str(tmp_path/'m.jsonl'))[1].startswith('fd_lite0 0')
    status, _, err = hx(hx_fid, tmp_path/'000010.pt', inception=str(tmp_path/'s.safetensors'), label='stroma',
        n_sample=12)
    assert status == 2 and 'stroma' in err
    for args, why in ((dict(shard='4/4'), 'shard 4/4'), (dict(shard='half'), 'expected i/n'),
            (dict(shard='merge', out=str(tmp_path/'none.safetensors')), 'to merge'),
            (dict(split='test'), 'expected val, train or all'), (dict(split='val'), 'has no split')):
        status, _, err = hx(hx_inception, tiny/'tiles', features='lite0', size=32, **args)
        assert status == 2 and why in err, err
