"""What a GPU would be given, as far as it can be known without one: that everything lies on it, with PyTorch's fake
tensors, which know their device and hold no numbers, and on a device that is not there and does (`elsewhere`); and a
step in float16, on the CPU."""
import contextlib
import numpy as np, pytest, torch
from torch._subclasses.fake_tensor import FakeTensorMode
from elsewhere import elsewhere
from histoxplaining import augmentation, classifier, explainer, files, images, layers, training_step as ts
from histoxplaining.backbones import backbone
from histoxplaining.counterfactual import explain
from histoxplaining.explainer import Explainer
from histoxplaining.features import perceptual
from histoxplaining.prior import Prior, prior_terms

ON_TILES = {   # name: function of tiles [4, 3, 32, 32] on a device
    'stain_jitter': lambda x: images.stain_jitter(x, x[:, :2, 0, 0], x[:, :2, 0, 0]),
    'restain': lambda x: images.restain(x, images.moments_of_stain(x)),
    'zoom': lambda x: images.zoom(x, x[:, 0, 0, 0]),
    'shift by numbers that lie there': lambda x: images.shift(x, x[:, 0, 0, 0].long(), x[:, 0, 0, 1].long()),
    'shift by a list': lambda x: images.shift(x, [1, 2, 3, 4], [0, 0, -1, 2]),
    'dihedral_batch': lambda x: augmentation.dihedral_batch(x, torch.arange(4)),
    'random_view': lambda x: augmentation.random_view(x, 0, 'view', range(4)),
    'light': lambda x: augmentation.light(x, 0, 'light', range(4)),
    'blur': lambda x: classifier._blurred(x, x[:, 0, 0, 0]),
    'draw': lambda x: files.draw((3,), 0, 'z', range(4), device=x.device),
}


@pytest.mark.parametrize('name', ON_TILES)
def test_everything_lies_on_the_gpu(name):
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = ON_TILES[name](torch.rand(4, 3, 32, 32, device='cuda'))
        assert y.device.type == 'cuda' and len(y) == 4


def test_a_prior_learns_on_the_gpu():
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device('cuda'): net = Prior(16, (4, 8, 8), 2, styles=4, width=16, blocks=1, told=16)
        there = dict(device='cuda')
        t = prior_terms(net, torch.rand(3, 16, **there), torch.rand(3, 4, 8, 8, **there), torch.rand(3, 2, **there), 0,
            range(3))
        assert {v.device.type for v in t.values()} == {'cuda'}
        assert net.sample(torch.rand(3, net.noise_dim, **there), torch.rand(3, 2, **there), 2)[1].device.type == 'cuda'


@pytest.mark.parametrize('patch', [False, True])
def test_a_step_in_float16(patch, monkeypatch):
    monkeypatch.setattr(layers, 'HALF', ('cpu', 'cuda'))
    cfg = ts.resolve(ts.TrainConfig(arch='StyleEx', kimg=1, batch=4, ae_kimg=0, device='cpu', channel_base=256,
        channel_max=16, num_fp16_res=4, feat_patch=patch, feat_channels=4, feat_res=8, bf16=False, proj_res=64), 32)
    clf = classifier.Classifier(backbone('resnet10t', 2), ('a', 'b'), 32, arch='resnet10t').frozen()
    torch.manual_seed(0)
    st, seen = ts.TrainState(cfg, 2), set()
    st.G.synthesis.b32.conv1.register_forward_hook(lambda m, i, o: seen.add(o.dtype))
    before = st.G.synthesis.b32.conv1.weight.clone()
    terms, left_out = ts.train_step(st, cfg, clf, perceptual(cfg.perceptual), torch.rand(4, 3, 32, 32) * 2 - 1,
        torch.tensor([0, 1, 1, 0]))
    assert seen == {torch.float16} and not any(left_out.values())
    assert all(np.isfinite(float(v)) for v in terms.values())
    assert not torch.equal(before, st.G.synthesis.b32.conv1.weight)


def test_tensors_that_lie_apart_are_refused():
    with elsewhere() as device:
        x = torch.rand(2, 3).to(device)
        assert x.cpu().device.type == 'cpu' and torch.equal((x + x).cpu(), 2 * x.cpu())
        for wrong in (lambda: x + torch.rand(2, 3), lambda: np.asarray(x), lambda: torch.rand(3)[x[0].long()]):
            with pytest.raises((RuntimeError, TypeError)): wrong()


def test_a_model_answers_on_another_device_as_on_the_cpu(monkeypatch):
    "Drawing, encoding, classifying, the flow and the gradient: nothing is left on the CPU by mistake."
    monkeypatch.setattr(explainer, 'usable', torch.device)
    seen = {}
    for device in ('cpu', 'meta'):
        with elsewhere() if device == 'meta' else contextlib.nullcontext():
            ex = Explainer.from_pretrained('colon-128', device)
            drawn = ex.render(ex.sample(range(2), 'healthy'))
            answers = explain(ex, list(drawn), 'adenocarcinoma')
            slow = explain(ex, list(drawn[:1]), 'adenocarcinoma', method='gradient')[0]
            seen[device] = drawn, ex.probabilities(drawn), [c.p for c in answers], slow.success
            assert all(c.success for c in answers)
    (a, pa, fa, ga), (b, pb, fb, gb) = seen.values()
    assert np.abs(a.astype(int) - b).max() <= 1 and np.allclose(pa, pb, atol=1e-3) and ga == gb
    assert np.allclose(fa, fb, atol=.02)
