"""Fréchet distance from given features (means, covariances, square root) against torch-fidelity's formula and SciPy's matrix square root, in one run.

    python benchmarks/metrics.py [--quick]

50,000 pictures of 2048 numbers each on both sides (--quick: 10,000 of 512). The last line is one JSON object: `ratio_distance` is their time over ours, for the faster of the two."""
import argparse, json, time
import numpy as np, scipy.linalg, torch
from histoxplaining.metrics import frechet_distance


def numpy_moments(x):
    x = x.astype(np.float64)
    return x.mean(0), np.cov(x, rowvar=False)

def by_torch_fidelity(a, b):
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    (m1, c1), (m2, c2) = numpy_moments(a), numpy_moments(b)
    return fid_statistics_to_metric({'mu': m1, 'sigma': c1}, {'mu': m2, 'sigma': c2}, False)['frechet_inception_distance']

def by_scipy(a, b):
    (m1, c1), (m2, c2) = numpy_moments(a), numpy_moments(b)
    return ((m1 - m2)**2).sum() + np.trace(c1) + np.trace(c2) - 2 * np.trace(scipy.linalg.sqrtm(c1 @ c2)).real


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='10,000 x 512')
    a = p.parse_args()
    n, d = (10_000, 512) if a.quick else (50_000, 2048)
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=g) / d**.5 * torch.logspace(0, -2, d)         # a spectrum that falls, as that of features does
    x, y = ((torch.randn(n, d, generator=g) @ mix).numpy() for _ in range(2))
    y = y * 1.1 + .05
    times, values = {}, {}
    for name, fn in (('ours', frechet_distance), ('torch-fidelity', by_torch_fidelity), ('scipy', by_scipy)):
        t = time.perf_counter()
        values[name] = float(fn(x, y))
        times[name] = time.perf_counter() - t
        print(f'{name:16} {times[name]:8.2f} s   {values[name]:.8f}', flush=True)
    best = min(times['torch-fidelity'], times['scipy'])
    print(json.dumps({'ratio_distance': round(best / times['ours'], 2), 'ratio_torch_fidelity': round(times['torch-fidelity'] / times['ours'], 2), 'ratio_scipy': round(times['scipy'] / times['ours'], 2),
                      'rel_error': max(abs(values[k] / values['ours'] - 1) for k in ('torch-fidelity', 'scipy')), 'n': n, 'd': d}))


if __name__ == '__main__': main()
