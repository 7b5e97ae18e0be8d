"""Augmentation against its definitions in SciPy, against published numbers, and differentiated twice."""
import numpy as np, pytest, scipy.ndimage, scipy.signal, torch
from hypothesis import given, settings, strategies as st
from histoxplaining.augmentation import (PIPES, SYM6, TRANSFORMS, AdaptiveP, Augment, amounts, band_gains, filter_bands,
    filter_bank, inverse_matrix, warp)
from histoxplaining.losses import r1_penalty

EVERYTHING = ('bgcfnc', 'histo')


def picture(n, size, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.6 - .8


def warp_by_definition(x, inverse):
    "Reflect far, double with SciPy's upfirdn, look up bilinearly, halve: one channel `[n, n]` in float64."
    n, far = x.shape[-1], 3 * x.shape[-1]
    # a triangle wave: reflection at the outer pixels
    at = np.abs((np.arange(-far, n + far) + n - 1) % (2 * n - 2) - (n - 1))
    big = x[np.ix_(at, at)]
    # sample m lies at pixel (m - 5) / 2 - far
    for axis in (0, 1): big = scipy.signal.upfirdn(SYM6, big, up=2, axis=axis)
    m = np.arange(2 * n + 10) / 2 - 2.5 - (n - 1) / 2
    px, py = np.meshgrid(m, m)
    qx, qy = np.einsum('ij,jhw->ihw', inverse[:2], np.stack([px, py, np.ones_like(px)])) + (n - 1) / 2
    y = scipy.ndimage.map_coordinates(big, [2 * (qy + far) + 5, 2 * (qx + far) + 5], order=1)
    for axis in (0, 1):
        y = scipy.signal.upfirdn(SYM6[::-1], np.pad(y, [(1, 0), (0, 0)] if axis == 0 else [(0, 0), (1, 0)]), down=2,
            axis=axis)
    return y[6:n + 6, 6:n + 6]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([8, 16, 21]), pipe=st.sampled_from(['blit', 'geom', 'bg']))
def test_warp_is_reflect_double_look_up_halve(seed, size, pipe):
    x, inverse = picture(3, size, seed), inverse_matrix(amounts(PIPES[pipe], 1., seed, 'warp', range(3)), size)
    y = warp(x, inverse)
    for k in range(3):
        for c in range(3):
            np.testing.assert_allclose(y[k, c].numpy(), warp_by_definition(x[k, c].numpy(), inverse[k].numpy()),
                atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([8, 16, 33]))
def test_band_filter_is_a_mirrored_convolution(seed, size):
    x, gains = picture(1, size, seed), band_gains(torch.randn(1, 4, generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64))
    taps, y = (gains[0].numpy() @ filter_bank()), x.numpy()
    for axis in (2, 3): y = scipy.ndimage.convolve1d(y, taps, axis=axis, mode='mirror')
    np.testing.assert_allclose(filter_bands(x, gains).numpy(), y, atol=1e-10)


@pytest.mark.parametrize('pipe', EVERYTHING)
def test_every_pipe_can_be_differentiated_twice(pipe):
    x = picture(3, 8).requires_grad_()
    f = lambda x: Augment(pipe, 1.)(x, 1, 'twice', range(3)).tanh()
    assert torch.autograd.gradcheck(f, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, x, fast_mode=True)


def test_r1_through_augmentation_trains_the_discriminator():
    x, v = picture(4, 8).requires_grad_(), torch.randn(3, 8, 8, dtype=torch.float64).requires_grad_()
    # affine in x, so that R1 of <v, aug(x)> is |A^T v|^2
    aug = lambda x: Augment('bgcf', 1.)(x, 0, 'r1', range(4))
    grad, = torch.autograd.grad(r1_penalty((aug(x) * v).flatten(1).sum(1), x), v)
    A = torch.stack([torch.autograd.functional.jacobian(lambda y: aug(torch.cat([x[:k], y[None],
        x[k + 1:]]))[k].flatten(), x[k].detach()).flatten(1) for k in range(4)])
    torch.testing.assert_close(grad.flatten(), 2 * (A @ (A.mT @ v.flatten()[:, None])).mean(0)[:, 0])


@pytest.mark.parametrize('pipe', PIPES)
def test_nothing_happens_at_p_zero(pipe):
    x = picture(4, 16).float()
    y = Augment(pipe, 0.)(x, 0, 'zero', range(4))
    # but for the view of the tile: the same pixels
    if pipe == 'histo': y, x = y.flatten(2).sort(2)[0], x.flatten(2).sort(2)[0]
    assert torch.equal(y, x)


@pytest.mark.parametrize('pipe', PIPES)
def test_an_image_is_changed_as_its_index_says(pipe):
    x, aug = picture(6, 16).float(), Augment(pipe, .5)
    y = aug(x, 3, 'batch', [5, 9, 2, 7, 11, 4])
    torch.testing.assert_close(y[[3, 0]], aug(x[[3, 0]], 3, 'batch', [7, 5]), atol=1e-5, rtol=0)
    assert not torch.equal(y, aug(x, 3, 'other', [5, 9, 2, 7, 11, 4]))


def test_gates_open_with_probability_p():
    pipe = {t: 1. for t in TRANSFORMS}
    a = amounts(pipe, .2, 0, 'gates', range(5000))
    for t, (law, g, k, _) in TRANSFORMS.items():
        if t in ('dihedral', 'rotate'): continue
        opened = (a[t] != 0).double().mean(0) / {'two': 1 / 2, 'four': 3 / 4}.get(law, 1)
        assert (opened - .2).abs().max() < .03, t                                           # 5 deviations
    assert abs((a['rotate'] != 0).any(1).double().mean() - .2) < .03
    assert len(a['dihedral'].unique()) == 8


@pytest.mark.parametrize('q', [.2, .5, .8])
def test_published_numbers_of_the_pipeline(shared, q):
    x = torch.from_numpy(np.random.RandomState(2).standard_normal((4, 3, 32, 32)).astype(np.float32)).clip(-1, 1)
    with np.load(shared/'reference'/'golden'/'nv32.npz') as golden: expected = golden[f'ada_debug_{q}']
    assert np.abs(Augment('bgcf', 1.)(x, 0, 'golden', range(4), quantile=q).numpy() - expected).max() < 2e-3


def test_p_follows_the_signs_and_a_saved_state_continues_them():
    g = torch.Generator().manual_seed(0)
    steps = [torch.randn(12, 1, generator=g) + .8 for _ in range(203)]
    whole, cut = AdaptiveP(target=.5, kimg=1), AdaptiveP(target=.5, kimg=1)
    moves = []
    for k, logits in enumerate(steps):
        before = float(whole)
        whole.update(logits)
        moves.append(float(whole) - before)
        cut.update(logits)
        if k == 101:                                                                        # in the middle of a count
            state, cut = cut.state_dict(), AdaptiveP(target=.5, kimg=1)
            cut.load_state_dict(state)
    assert cut.state_dict() == whole.state_dict()
    for k in range(4, 200, 4):
        assert moves[k] == moves[k + 1] == moves[k + 2] == 0
        r = torch.cat(steps[k:k + 4]).sign().mean().item()
        if 0 < sum(moves[:k + 4]) < 1: assert moves[k + 3] == pytest.approx(48 / 1000 * np.sign(r - .5))
    for _ in range(200): whole.update(torch.ones(12))
    assert float(whole) == 1
