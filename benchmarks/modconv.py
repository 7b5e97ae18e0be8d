"""Forms of the modulated convolution, at every shape that the generators of 64, 128 and 256 px use, in one run.

    python benchmarks/modconv.py [--quick] [--device cuda]

Scaling activations before and after one convolution of shared weights, against one group per sample with weights of
its own; contiguous against channels-last memory. Forward and backward, batch of training and batch 1. Prints
milliseconds and the ratio of each form to the first, and as the last line one JSON object."""

import argparse, json
import torch
from histoxplaining.layers import RESAMPLE, modulated_conv2d
from histoxplaining.networks import channels
from histoxplaining.operators import setup_filter
from ops import NETS, seconds


def shapes(size, base, most):
    "(in, out, resolution of the input, up) of the 3x3 layers."
    out, r = [(channels(4, base, most), channels(4, base, most), 4, 1)], 8
    while r <= size:
        i, o = channels(r // 2, base, most), channels(r, base, most)
        out += [(i, o, r // 2, 2), (o, o, r, 1)]
        r *= 2
    return list(dict.fromkeys(out))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='64 px only, fewer repetitions')
    p.add_argument('--device', default='cpu')
    p.add_argument('--threads', type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    forms = [('scaled', False, torch.contiguous_format), ('scaled nhwc', False, torch.channels_last),
        ('grouped', True, torch.contiguous_format)]
    best, total = {}, {n: 0. for n, *_ in forms}
    f = setup_filter(RESAMPLE).to(a.device)
    for size in ([64] if a.quick else NETS):
        base, most, batch = NETS[size]
        for n in (batch, 1):
            print(f'\n{size} px, batch {n}: ms forward + backward   ' + '   '.join(name for name, *_ in forms))
            for i, o, r, up in shapes(size, base, most):
                times = {}
                for _ in range(2):
                    for name, grouped, mem in forms:
                        x = torch.randn(n, i, r, r, device=a.device).to(memory_format=mem).requires_grad_()
                        w = torch.randn(o, i, 3, 3, device=a.device).requires_grad_()
                        s = torch.randn(n, i, device=a.device).requires_grad_()
                        def fn():
                            return torch.autograd.grad(modulated_conv2d(x, w, s, f, up=up, grouped=grouped).sum(),
                                [x, w, s])
                        times[name] = min(times.get(name, 9e9), seconds(fn, 3 if a.quick else 7))
                for k, t in times.items(): total[k] += t
                win = min(times, key=times.get)
                best[f'{size}px b{n} {i}->{o} {r}{"x2" if up == 2 else ""}'] = win
                print(f'{i:4} -> {o:4} at {r:3}{" up" if up == 2 else "   "}  ' +
                    '  '.join(f'{1000 * t:8.2f} ({t / times["scaled"]:.2f})' for t in times.values()) + f'  {win}')
    print(json.dumps({'best': {k: list(best.values()).count(k) for k in total},
        'total_ratio': {k: round(t / total['scaled'], 3) for k, t in total.items()}}))


if __name__ == '__main__': main()
