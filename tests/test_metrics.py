"""Image-set metrics against closed forms, against torch-fidelity and reference numbers, and on sets that are odd or wrong."""
import json, warnings
from pathlib import Path
import numpy as np, pytest, torch
from histoxplaining import metrics
from histoxplaining.files import HxError
from histoxplaining.metrics import Features, Moments, features, frechet_distance, kid, memorisation, precision_recall

warnings.filterwarnings('ignore', message='.*mostly bias')
rng = np.random.default_rng(0)


@pytest.fixture(scope='module')
def inception(tmp_path_factory):
    "The reference network with random weights, in a file."
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Net
    folder, real = tmp_path_factory.mktemp('inception'), Net.load_state_dict
    torch.save({}, folder/'empty.pth')
    torch.manual_seed(0)
    Net.load_state_dict = lambda self, *a, **k: None
    try: net = Net('x', ['2048'], feature_extractor_weights_path=str(folder/'empty.pth'))
    finally: Net.load_state_dict = real
    torch.save(net.state_dict(), folder/'w.pth')
    return folder/'w.pth'


def test_fid_is_torch_fidelitys(inception, tmp_path):
    from torch_fidelity import calculate_metrics
    from histoxplaining.images import write_png
    sets = [rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8), rng.integers(40, 200, (24, 32, 32, 3), dtype=np.uint8)]
    for name, imgs in zip('ab', sets):
        for i, im in enumerate(imgs): write_png(tmp_path/name/f'{i:02d}.png', im)
    want = calculate_metrics(input1=str(tmp_path/'a'), input2=str(tmp_path/'b'), fid=True, cuda=False, verbose=False, feature_extractor_weights_path=str(inception), save_cpu_ram=True, cache=False)
    f = features('inception', weights=inception)
    got = frechet_distance(f(sets[0]), f(sets[1]), f)
    assert got.record['metric'].startswith('fd_inception') and abs(got - want['frechet_inception_distance']) <= 1e-3 * got


def test_the_toy_number_of_the_lineage(shared):
    r = np.random.RandomState(7)
    a, b = r.standard_normal((200, 8)), r.standard_normal((200, 8)) * 1.3 + .2
    want = json.loads((shared/'reference'/'golden'/'lineage_32.json').read_text())['fid_toy']['fid']
    assert abs(frechet_distance(a, b) - want) < 1e-8


@pytest.mark.parametrize('n,d', [(300, 5), (300, 64), (20, 64), (2, 8)])
def test_properties_of_the_distance(n, d):
    x, y = rng.standard_normal((n, d)) * rng.uniform(.1, 3, d), rng.standard_normal((n + 3, d)) + .5
    f = lambda a, b: float(frechet_distance(a, b))
    scale = f(x, y)
    assert abs(f(x, x)) < 1e-5 * scale
    assert abs(f(x, x + 2) - 4 * d) < 1e-5 * scale
    assert abs(f(x, y) - f(y, x)) < 1e-5 * scale
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    assert abs(f(x @ Q, y @ Q) - scale) < 1e-5 * scale
    root = np.linalg.svd((x - x.mean(0)) @ (y - y.mean(0)).T / np.sqrt((n - 1) * (n + 2)), compute_uv=False).sum()       # another way to the same trace
    direct = ((x.mean(0) - y.mean(0))**2).sum() + np.cov(x.T).trace() + np.cov(y.T).trace() - 2 * root
    assert abs(scale - direct) < 1e-5 * scale


def test_shards_merge_and_batches_do_not_matter():
    x = rng.standard_normal((1000, 12)) + 50
    whole = Moments.of(x)
    parts = Moments.of(x[:10]) + Moments.of(x[10:700]) + Moments.of(x[700:])
    for got in (parts, Moments.of(x, chunk=64)):
        assert got.n == 1000 and np.abs(got.mean - whole.mean).max() < 1e-10 and np.abs(got.cov - whole.cov).max() < 1e-10
    assert frechet_distance(parts, x) < 1e-8


def test_constant_pictures_and_what_is_wrong():
    f = Features('mean', lambda x: x.mean((2, 3)))
    flat = lambda v, n=6: np.full((n, 16, 16, 3), v, np.uint8)
    assert abs(frechet_distance(f(flat(0)), f(flat(255))) - 12) < 1e-6
    assert frechet_distance(f(flat(9)), f(flat(9))) == 0
    nan = np.ones((5, 3)); nan[3, 1] = np.nan
    for bad, why in ((lambda: frechet_distance(nan, nan), 'vector 3'), (lambda: frechet_distance(np.ones((1, 3)), np.ones((4, 3))), 'two pictures'), (lambda: frechet_distance(np.ones((4, 3)), np.ones((4, 2))), 'not the same features'),
                     (lambda: f([]), 'no pictures'), (lambda: f([np.zeros((4, 4, 3), np.uint8), np.zeros((5, 5, 3), np.uint8)]), 'different sizes'), (lambda: f(np.zeros((2, 4, 4, 1), np.uint8)), 'expected uint8'),
                     (lambda: kid(np.ones((1, 3)), np.ones((5, 3))), 'at least 2 pictures'), (lambda: precision_recall(np.ones((3, 2)), np.ones((9, 2))), 'at least 4 pictures')):
        with pytest.raises(HxError, match=why): bad()


def test_kernel_distance_has_no_bias():
    a, b = rng.standard_normal((2000, 4)), rng.standard_normal((2000, 4))
    values = [float(kid(a[i::20], b[i::20], subsets=20, seed=i)) for i in range(20)]      # twenty tests with 100 pictures each
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(20)
    assert kid(a[:200], b[:200] + .5, subsets=20) > 5 * np.std(values)


def test_a_warning_where_there_is_mostly_bias():
    with pytest.warns(UserWarning, match='mostly bias'): frechet_distance(rng.standard_normal((9, 8)), rng.standard_normal((99, 8)))
