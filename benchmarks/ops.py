"""Native operators against the reference in plain PyTorch, at every shape that the networks of 64, 128 and 256 px
use, in one run.

    python benchmarks/ops.py [--quick] [--device cuda]

Shapes are recorded from a forward pass of generator, discriminator and encoder. Prints a table of ratios (reference
time over native time, medians; above 1 the native operator is faster), and as the last line one JSON object."""

import argparse, json, statistics, time
import torch
from histoxplaining import layers, networks, operators as ops

NETS = {64: (2048, 128, 16), 128: (4096, 256, 8), 256: (16384, 512, 2)}  # size: channel_base, channel_max, batch


def recorded(size):
    "Distinct operator calls of one forward pass: `{(op, shape, arguments): how often}`."
    base, most, batch = NETS[size]
    calls, real = {}, (ops.upfirdn2d, ops.bias_act)
    def note(name, fn):
        def wrapped(x, *a, **k):
            plain = tuple((i, tuple(v.shape) if isinstance(v, torch.Tensor) else v) for i,
                v in (*enumerate(a), *k.items()))
            calls[name, tuple(x.shape), plain] = calls.get((name, tuple(x.shape), plain), 0) + 1
            return fn(x, *a, **k)
        return wrapped
    kw = dict(channel_base=base, channel_max=most)
    G, D = networks.Generator(size, 2, **kw), networks.Discriminator(size, 2, **kw)
    E = networks.Encoder(size, G.num_ws, **kw)
    up, act = note('upfirdn2d', real[0]), note('bias_act', real[1])
    saved = layers.upfirdn2d, layers.bias_act, networks.bias_act, ops.upfirdn2d
    layers.upfirdn2d, layers.bias_act, networks.bias_act, ops.upfirdn2d = up, act, act, up
    try:
        with torch.no_grad():
            c = torch.eye(2)[torch.arange(batch) % 2]
            img = G(torch.randn(batch, 512), c)
            D(img, c); E(img)
    finally: layers.upfirdn2d, layers.bias_act, networks.bias_act, ops.upfirdn2d = saved
    return calls


def seconds(fn, runs):
    fn(); fn()
    times = []
    for _ in range(runs):
        if torch.cuda.is_available(): torch.cuda.synchronize()
        t = time.perf_counter(); fn()
        if torch.cuda.is_available(): torch.cuda.synchronize()
        times.append(time.perf_counter() - t)
    return statistics.median(times)


def pair(call, device, runs):
    """Ratios of one call: forward, and forward with backward; the native time of the latter; whether native code is
    what a network gets here."""
    name, shape, args = call
    build = lambda v: torch.randn(v, device=device) if isinstance(v, tuple) and len(v) == 1 else v
    pos, kw = [v for i, v in args if isinstance(i, int)], {i: v for i, v in args if isinstance(i, str)}
    if name == 'upfirdn2d': pos[0] = ops.setup_filter((1, 3, 3, 1)).to(device)
    else: pos, kw = [build(v) for v in pos], {k: build(v) for k, v in kw.items()}
    fn = getattr(ops, name)
    x = torch.randn(shape, device=device, requires_grad=True)
    b = [t.requires_grad_() for t in pos if isinstance(t, torch.Tensor)] if name == 'bias_act' else []
    g = torch.randn_like(fn(x, *pos, **kw))
    def forward():
        with torch.no_grad(): fn(x, *pos, **kw)
    def both(): torch.autograd.grad(fn(x, *pos, **kw), [x, *b], g)
    run, used = getattr(ops, f'_run_{name}'), []
    setattr(ops, f'_run_{name}', lambda *a: (used.append(a), run(*a))[1])
    forward()
    setattr(ops, f'_run_{name}', run)
    chosen = bool(used)
    out, use, ops.FORCE = {}, ops._use, True
    # twice each, alternating; the better median counts
    for side in ('native', 'reference', 'native', 'reference'):
        ops._use = use if side == 'native' else (lambda x: None)
        out[side] = [min(a, b) for a, b in zip(out.get(side, (9e9, 9e9)),
            (seconds(forward, runs), seconds(both, runs)))]
    ops._use, ops.FORCE = use, False
    return *[r / n for r, n in zip(out['reference'], out['native'])], out['native'][1], chosen


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='64 px only, fewer repetitions')
    p.add_argument('--device', default='cpu')
    p.add_argument('--threads', type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    ops.FORCE = False
    if ops.backend(a.device)[0] != 'native':
        raise SystemExit(f'no native operators on {a.device}: {ops.backend(a.device)[1]}')
    rows = []
    for size in ([64] if a.quick else NETS):
        print(f'\n{size} px, channel_base {NETS[size][0]}, channel_max {NETS[size][1]}, batch '
            f'{NETS[size][2]}\n{"op":10} {"shape":22} {"what":34} forward  fwd+bwd   native ms')
        for call, n in sorted(recorded(size).items(), key=lambda c: (c[0][0], -c[0][1][-1], str(c[0]))):
            what = ' '.join(f'{k} {v}' for k, v in call[2] if isinstance(k, str) and v is not None)
            fwd, both, t, chosen = pair(call, a.device, 7 if a.quick else 15)
            rows.append((fwd, both, chosen))
            print(f'{call[0]:10} {"x".join(map(str, call[1])):22} {what[:34]:34} {fwd:7.2f} {both:8.2f} '
                f'{1000 * t:11.3f}{"" if chosen else "   (not chosen: PyTorch does it)"}', flush=True)
    flat = [r for *row, chosen in rows if chosen for r in row]
    print(f'\nworst and median ratio are over the {sum(r[2] for r in rows)} of {len(rows)} shapes at which native code '
        f'is chosen')
    print(json.dumps({'worst_ratio': round(min(flat), 3), 'median_ratio': round(statistics.median(flat), 3),
        'backend': ' '.join((a.device, *ops.backend(a.device)))}))


if __name__ == '__main__': main()
