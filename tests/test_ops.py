"""The operators against SciPy, float64 and finite differences, in every form there is; and what happens where nothing
can be compiled."""

import os, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pytest, scipy.signal, torch
from hypothesis import given, settings, strategies as st
from histoxplaining import operators as ops

DEVICES = ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])
NATIVE = [d for d in DEVICES if ops.backend(d)[0] == 'native']
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    monkeypatch.setattr(ops, 'FORCE', True)      # the native operator also where PyTorch's own is faster


def scipy_1d(x, f, up, down, p0, p1, axis):
    "Zero-insert, pad, convolve, decimate along one axis of a float64 array; convolution and decimation by SciPy."
    z = scipy.signal.upfirdn([1.], x, up=up, axis=axis)
    more = [(0, 0)] * x.ndim; more[axis] = (max(p0, 0), x.shape[axis] * up - z.shape[axis] + max(p1, 0))
    z = np.pad(z, more)
    z = z.take(range(max(-p0, 0), z.shape[axis] - max(-p1, 0)), axis=axis)
    y = scipy.signal.upfirdn(f, z, axis=axis)
    return y.take(range(len(f) - 1, z.shape[axis], down), axis=axis)


resampling = dict(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 9), st.integers(1, 20)),
        taps=st.integers(1, 13),
    up=st.tuples(st.integers(1, 4), st.integers(1, 4)), down=st.tuples(st.integers(1, 4), st.integers(1, 4)),
        pad=st.tuples(*[st.integers(-5, 14)] * 4), flip=st.booleans(),
    gain=st.sampled_from([1, 4, -.5]), last=st.booleans(), seed=st.integers(0, 2**30))

def leaves_something(shape, taps, up, down, pad):
    try: ops._lengths(shape[2:], (taps, taps), up, down, pad)
    except ValueError: return False
    H, W = shape[2:]
    return all(n * u > max(-a, 0) + max(-b, 0) for n, u, (a, b) in ((H, up[1], pad[2:]), (W, up[0], pad[:2])))


@settings(max_examples=150, deadline=None)
@given(**resampling)
@pytest.mark.parametrize('device', DEVICES)
def test_resampling_is_scipys(device, shape, taps, up, down, pad, flip, gain, last, seed):
    if not leaves_something(shape, taps, up, down, pad): return
    rng = np.random.default_rng(seed)
    x, f = rng.standard_normal(shape), rng.standard_normal(taps)
    g = f[::-1] if flip else f
    want = gain * scipy_1d(scipy_1d(x, g, up[0], down[0], pad[0], pad[1], 3), g, up[1], down[1], pad[2], pad[3], 2)
    tx = torch.tensor(x, device=device).contiguous(memory_format=LAYOUTS[last])
    tf = torch.tensor(f, device=device)
    for filt in (tf, torch.outer(tf, tf)):
        full = (tx, filt, up, down, pad, flip, gain)
        got = [ops.upfirdn2d(*full), ops.upfirdn2d_reference(*full)]
        # the function of a GPU thread, on the CPU
        if device in NATIVE: got.append(ops._run_upfirdn2d(ops._native(device)[0], *full, fast=False))
        for y in got:
            assert y.shape == want.shape
            np.testing.assert_allclose(y.cpu().numpy(), want, atol=1e-10 * taps**2)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype,tol', [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_stored_precisions_add_up_in_float32(device, dtype, tol, layout):
    x, f = torch.randn(2, 6, 17, 16, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    b = torch.randn(6, dtype=torch.float64)
    low = x.to(device, dtype).contiguous(memory_format=layout)
    for up, down in ((1, 1), (2, 1), (1, 2)):
        y = ops.upfirdn2d(low, f.float().to(device), up, down, 6)
        assert y.dtype == dtype
        if device in NATIVE: assert y.is_contiguous(memory_format=layout)
        want = ops.upfirdn2d_reference(low.cpu().double(), f.float().double(), (up, up), (down, down), (6,) * 4, False,
            1)
        assert (y.cpu().double() - want).abs().max() <= tol * want.abs().max()
    for act in ops.ACTIVATIONS:
        y = ops.bias_act(low, b.to(device, dtype), act=act, clamp=1.5)
        want = ops.bias_act_reference(low.cpu().double(), b.to(dtype).double(), 1, act, *ops.ACTIVATIONS[act][1:], 1.5)
        assert y.dtype == dtype and (y.cpu().double() - want).abs().max() <= 2 * tol, act


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('native', [True, False])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_two_derivatives(device, native, layout, monkeypatch):
    if not native: monkeypatch.setattr(ops, '_use', lambda x: None)
    if native and device not in NATIVE: pytest.skip(f'no native operators on {device}: {ops.backend(device)[1]}')
    torch.manual_seed(0)
    leaf = lambda *s: torch.randn(*s, dtype=torch.float64, device=device)
    x, b = leaf(2, 3, 5, 4).contiguous(memory_format=layout).requires_grad_(), leaf(3).requires_grad_()
    f = leaf(4)
    for up, down, pad in ((1, 1, (1, 2, 2, 1)), (2, 1, (2, 1, 2, 1)), (1, 2, (1, 1, 1, 1)),
            ((3, 2), (2, 3), (4, -1, 3, 2))):
        for filt in (f, torch.outer(f, f)):
            fn = lambda x: ops.upfirdn2d(x, filt, up, down, pad, gain=1.7)
            assert torch.autograd.gradcheck(fn, x) and torch.autograd.gradgradcheck(lambda x: fn(x).sin(), x)
    for act in ops.ACTIVATIONS:
        for clamp in (None, 1.1):
            fn = lambda x, b: ops.bias_act(x, b, act=act, gain=1.3, clamp=clamp)
            assert torch.autograd.gradcheck(fn, (x, b)) and torch.autograd.gradgradcheck(lambda x, b: fn(x, b).sin(),
                (x, b)), act
    v, c = leaf(4, 6).requires_grad_(), leaf(6).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v, c: ops.bias_act(v, c, dim=1, act='swish').sin(), (v, c))


@pytest.mark.parametrize('device', DEVICES)
def test_a_negative_slope_and_nan_pass_through(device):
    x = torch.tensor([[-2., -.5, .5, float('nan')]], device=device, requires_grad=True)
    y = ops.bias_act(x, act='lrelu', alpha=-.5, gain=1.)
    assert y[0, :3].tolist() == [1., .25, .5] and y[0, 3].isnan()
    g, = torch.autograd.grad(y[0, :3].sum(), x)
    assert g[0, :3].tolist() == [-.5, -.5, 1.]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='4x4 taps'): ops.upfirdn2d(torch.ones(1, 1, 2, 2), torch.ones(4))
    with pytest.raises(KeyError): ops.bias_act(torch.ones(1, 2), act='mish')
    with pytest.raises(ValueError, match=r'\[3\]'): ops.bias_act(torch.ones(1, 2), torch.ones(3))


def test_other_dtypes_take_the_reference(capsys):
    x = torch.ones(1, 1, 4, 4, dtype=torch.complex64)
    assert ops.bias_act(x, gain=2.).sum() == 32
    if 'cpu' in NATIVE: assert 'complex64' in capsys.readouterr().err


CODE = '''import torch, sys
from histoxplaining import operators as ops
ops.FORCE = True
y = ops.bias_act(torch.ones(1, 2, 4, 4), torch.ones(2), act='lrelu', gain=1.)
print(*ops.backend(), float(y.sum()))'''

def start(cache, **env):
    return subprocess.Popen([sys.executable, '-c', CODE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'TORCH_EXTENSIONS_DIR': str(cache), **env})

def finish(p):
    out, err = p.communicate()
    assert p.returncode == 0, err
    return out, [l for l in err.splitlines() if l.startswith('histoxplaining:')]


def test_without_a_compiler_the_reference_works(tmp_path):
    out, lines = finish(start(tmp_path, CXX='no-such-compiler'))
    assert out.startswith('reference') and out.strip().endswith('64.0') and len(lines) == 1
    assert 'no-such-compiler' in lines[0]


def test_a_failing_build_ends_in_one_line(tmp_path):
    cxx = tmp_path/'c++'
    cxx.write_text('#!/bin/sh\ncase "$*" in *--version*|*-dumpfullversion*) echo "g++ 12.2.0";; *) echo "x.cpp:1: '
        'error: broken on purpose" >&2; exit 1;; esac\n')
    cxx.chmod(0o755)
    out, lines = finish(start(tmp_path/'cache', CXX=str(cxx)))
    assert out.startswith('reference') and len(lines) == 2 and 'broken on purpose' in lines[1], lines


def test_the_choice_of_the_user_counts(tmp_path):
    out, lines = finish(start(tmp_path, HX_OPS='reference'))
    assert out.startswith('reference HX_OPS=reference') and not lines and not list(tmp_path.iterdir())
    p = start(tmp_path, HX_OPS='fast')
    assert 'expected reference, native' in p.communicate()[1] and p.returncode


@pytest.mark.skipif('cpu' not in NATIVE, reason='nothing can be compiled here')
def test_processes_that_start_together_build_once(tmp_path):
    cache = tmp_path/'a folder with spaces'
    runs = [finish(p) for p in [start(cache) for _ in range(3)]]
    assert all(out.startswith('native') and out.strip().endswith('64.0') for out, _ in runs)
    assert sum(len(lines) for _, lines in runs) == 1 and len(list(cache.rglob('*.so'))) == 1
    # a cache that cannot be written but has the library serves it; one that has not is passed over
    before = sorted(p.name for p in cache.rglob('*'))
    for p in (cache/'histoxplaining', cache): p.chmod(0o555)
    out, lines = finish(start(cache))
    for p in (cache, cache/'histoxplaining'): p.chmod(0o755)
    assert out.startswith('native') and not lines and sorted(p.name for p in cache.rglob('*')) == before
    private = tmp_path/'tmp'/f'histoxplaining-{os.getuid()}'
    private.mkdir(parents=True, mode=0o700)
    shutil.move(next(cache.rglob('*.so')), private)
    (tmp_path/'file').write_text('')
    # a file where the cache should be: the private folder serves
    out, lines = finish(start(tmp_path/'file', TMPDIR=str(tmp_path/'tmp')))
    assert out.startswith('native') and not lines


@pytest.mark.slow
def test_cuda_sources_compile_and_link(tmp_path, monkeypatch):
    if not torch.version.cuda: pytest.skip('a CPU build of torch')
    try: ops._toolkit()
    except RuntimeError as e: pytest.skip(str(e))
    monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', '7.5;8.0;9.0')
    lib = ops._compile('cuda', Path(ops.__file__).parent/'csrc', tmp_path)
    names = subprocess.run(['nm', '-D', str(lib)], capture_output=True, text=True).stdout
    assert 'hx_upfirdn2d' in names and 'hx_bias_act' in names
    code = lib.read_bytes()
    assert all(arch in code for arch in (b'sm_75', b'sm_80', b'sm_90'))
