"""Fréchet distance from given features (means, covariances, square root) against torch-fidelity and against SciPy's
matrix square root, in one run.

    python benchmarks/metrics.py [--quick] [--threads 2]

50,000 vectors of 2048 numbers on both sides (--quick: 10,000 of 512), with a spectrum that falls as that of features
does. The last line is one JSON object: `ratio_distance` is their time over ours, for the faster of the two,
`rel_error` the largest relative difference of a value from ours."""

import argparse, json, time
import numpy as np, scipy.linalg, torch
from threadpoolctl import threadpool_limits
from histoxplaining.metrics import frechet_distance


def by_torch_fidelity(a, b):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    return fid_statistics_to_metric(*(fid_features_to_statistics(torch.from_numpy(v)) for v in (a, b)),
        False)['frechet_inception_distance']


def by_scipy(a, b):
    (m1, c1), (m2, c2) = ((v.mean(0, dtype=np.float64), np.cov(v, rowvar=False)) for v in (a, b))
    return ((m1 - m2)**2).sum() + np.trace(c1) + np.trace(c2) - 2 * np.trace(scipy.linalg.sqrtm(c1 @ c2)).real


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='10,000 x 512, best of three')
    p.add_argument('--threads', type=int, default=2, help='for all three')
    a = p.parse_args()
    n, d, runs = (10_000, 512, 3) if a.quick else (50_000, 2048, 1)
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=g) / d**.5 * torch.logspace(0, -2, d)
    x, y = ((torch.randn(n, d, generator=g) @ mix).numpy() for _ in range(2))
    y = y * 1.1 + .05
    frechet_distance(x[:99], y[:99], 'warm')
    times, values = {}, {}
    with threadpool_limits(a.threads):
        for name, fn in (('ours', frechet_distance), ('torch-fidelity', by_torch_fidelity), ('scipy', by_scipy)):
            took = []
            for _ in range(runs):
                t = time.perf_counter()
                values[name] = float(fn(x, y))
                took.append(time.perf_counter() - t)
            times[name] = min(took)
            print(f'{name:16} {times[name]:8.2f} s   {values[name]:.8f}', flush=True)
    ratio = {k: round(times[k] / times['ours'], 2) for k in ('torch-fidelity', 'scipy')}
    print(json.dumps({'ratio_distance': min(ratio.values()), 'ratio_torch_fidelity': ratio['torch-fidelity'],
        'ratio_scipy': ratio['scipy'],
                      'rel_error': max(abs(values[k] / values['ours'] - 1) for k in ('torch-fidelity', 'scipy')),
                          'n': n, 'd': d, 'threads': a.threads}))


if __name__ == '__main__': main()
