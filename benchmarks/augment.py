"""Cost of augmentation per batch of 16 at 64 px, beside the convolutions of the networks that train on it, in one
run.

    python benchmarks/augment.py [--quick]

Prints milliseconds of each pipe at growing p: of tiles (no gradient), of fakes (forward and backward), and of R1
(backward of the backward). The last line is one JSON object; `share` is the cost of one batch of tiles and one of
fakes at p = 0.6, relative to one forward and backward pass through the 3x3 convolutions of generator and
discriminator."""
import argparse, json, statistics, time
import torch
from histoxplaining.augmentation import PIPES, Augment
from train import unit


def milliseconds(f, runs):
    "Median over batches; every run sees other images."
    times = []
    for k in range(runs + 2):
        t = time.perf_counter()
        f(range(16 * k, 16 * k + 16))
        if k >= 2: times.append(time.perf_counter() - t)
    return 1000 * statistics.median(times)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--quick', action='store_true', help='fewer batches')
    p.add_argument('--threads', type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    runs = 7 if a.quick else 25
    x = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 1.8 - .9
    leaf, ms, before = x.clone().requires_grad_(), {}, unit(runs)[0]

    def r1(aug, i):
        g, = torch.autograd.grad(aug(leaf, 0, 'b', i).square().sum(), leaf, create_graph=True)
        torch.autograd.grad(g.square().sum(), leaf)

    print(f'{"pipe":8s}' + ''.join(f'{f"p = {q}: tiles":>16s}{"fakes":>8s}{"R1":>8s}' for q in (0, .2, .6, 1)))
    for name in PIPES:
        ms[name] = {}
        for q in (0, .2, .6, 1):
            aug = Augment(name, q)
            ms[name][q] = [round(milliseconds(f, runs), 1)
                for f in (lambda i: aug(x, 0, 'b', i), lambda i: torch.autograd.grad(aug(leaf, 0, 'b', i).sum(), leaf),
                lambda i: r1(aug, i))]
        print(f'{name:8s}' + ''.join(f'{t:16.1f}{f:8.1f}{r:8.1f}' for t, f, r in ms[name].values()))
    work = (before + unit(runs)[0]) / 2
    print(json.dumps({'unit_ms': round(1000 * work, 1), 'ms': ms,
        'share': {k: round(sum(v[.6][:2]) / 1000 / work, 3) for k, v in ms.items()}}))


if __name__ == '__main__': main()
