"""Foreign files: the same function as the code they come from, and nothing in them runs."""
import argparse, contextlib, functools, io, json, operator, os, pickle, re
import subprocess, sys, tempfile, types, zipfile, zlib
from collections import OrderedDict
from pathlib import Path
import lmdb, numpy as np, pytest, torch
from histoxplaining.files import CheckpointError, DataError, HxError, load_pickle, load_tensors
from histoxplaining.images import png_bytes, to_uint8
from histoxplaining.synthetic import synthetic_tiles
from histoxplaining.tiles import TileStore
from histoxplaining.networks import Discriminator, Encoder, Generator
from histoxplaining.checkpoints import PixelRange, load_model
from histoxplaining.interop import (LineageStore, convert, from_nvidia_state, label_effect, load_inception_pickle,
    load_lineage_checkpoint, load_nvidia_pickle)
from histoxplaining.explainer import Explainer
from histoxplaining.cli import hx_convert, hx_tiles

FIR = torch.outer(f := torch.tensor([1., 3, 3, 1]), f) / 64


def drawn(seed, *shape): return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def command(script, *args, **options):
    "A console script: its exit status and the last line of what it said."
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try: script(*map(str, args), **options)
        except SystemExit as e: return e.code, out.getvalue().strip().splitlines()[-1]
    return 0, out.getvalue().strip().splitlines()[-1]


def shell(name, *args):
    "The same, as a shell would start it."
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/name).write_text(f'from histoxplaining.cli import {name}\n{name}()\n')
        p = subprocess.run([sys.executable, Path(d)/name, *map(str, args)], capture_output=True, text=True)
    return p.returncode, (p.stderr or p.stdout).strip().splitlines()[-1]


# ---------------------------------------------------------------- the golden numbers

@pytest.fixture(scope='module')
def golden(shared):
    p = shared/'reference'/'golden'
    if not p.exists(): pytest.skip(f'no golden numbers at {p}')
    return p


def recipe(keys, salt, net):
    "Seeded weights, as the README of the golden numbers describes them."
    out = {}
    for k, s in keys.items():
        if k.endswith('kernel'): out[k] = FIR * (4 if net == 'g' else 1)
        elif k.endswith('resample_filter'): out[k] = FIR
        else:
            r = np.random.RandomState(zlib.crc32((salt + k).encode()) &
                0xffffffff).standard_normal(s).astype(np.float32)
            if k.endswith(('modulation.bias', 'affine.bias')): r = 1 + .1 * r
            elif k.endswith(('noise.weight', 'noise_strength', 'bias', 'w_avg')): r = r * .1
            elif re.search(r'style\.\d+\.weight$|mapping\.fc\d+\.weight$', k): r = r / .01
            out[k] = torch.from_numpy(np.asarray(r, np.float32))
    return out


def checkpoint(path, nets, salt, **more):
    "A checkpoint with every key that training leaves."
    nets = {k: recipe(v, salt, k) for k, v in nets.items()}
    optims = {f'{k}_optim': {'state': {0: {'step': 8, 'exp_avg': torch.zeros(2)}},
        'param_groups': [{'lr': .002, 'betas': (0, .99), 'params': [0]}]} for k in nets}
    torch.save({**nets, 'g_ema': nets['g'], **optims, 'ada_aug_p': .0, **more}, path)
    return path


def close(ours, ref, tol=1e-4):
    ref = np.asarray(ref).reshape(ours.shape)
    assert np.abs(ours.detach().numpy() - ref).max() <= tol * np.abs(ref).max()


def summary(ours, ref):
    "Against mean, deviation and the first eight numbers (which were written with six digits)."
    v = ours.detach().double()
    assert v.numel() == ref['n']
    assert abs(v.mean() - ref['mean']) < 1e-4 * ref['std'] and abs(v.std() - ref['std']) < 1e-4 * ref['std']
    assert np.abs(v.flatten()[:8].numpy() - ref['first8']).max() < 1e-4 * np.abs(ref['first8']).max()


def keys_32(keys_16, conditional):
    "The key lists of 16 px, with one more resolution and, if need be, without labels."
    g, d, e = ({k: list(s) for k, s in keys_16[n].items()} for n in 'gde')
    for k, s in [*g.items()]:
        for old, new in (('convs.2.', 'convs.4.'), ('convs.3.', 'convs.5.'), ('to_rgbs.1.', 'to_rgbs.2.')):
            if k.startswith(old): g[new + k[len(old):]] = s
    g |= {'noises.noise_5': [1, 1, 32, 32], 'noises.noise_6': [1, 1, 32, 32]}
    for net in (d, e):
        net |= {k.replace('convs.2.', 'convs.3.'): s for k, s in [*net.items()] if k.startswith('convs.2.')}
    d['embedding.weight'] = [2, 1024]
    if not conditional:
        for net in (g, d): del net['embedding.weight']
        for k in ('input.input', 'conv1.conv.weight'): g[k] = [512 if n == 532 else n for n in g[k]]
        for k in ('conv1.conv.modulation.weight', 'conv1.conv.modulation.bias'): g[k][0] = 512
        d['convs.0.0.weight'][1] = 3
        return dict(g=g, d=d)
    return dict(g=g, d=d, e=e)


@pytest.fixture(scope='module')
def lineage_32(golden, tmp_path_factory):
    "Reference numbers, the unconditional and the conditional networks, z, x and labels."
    tmp, keys = tmp_path_factory.mktemp('lineage'), json.loads((golden/'sc16_keys.json').read_text())
    plain, cgan = (load_lineage_checkpoint(checkpoint(tmp/f'{c}.pt', keys_32(keys, c), '')) for c in (False, True))
    return json.loads((golden/'lineage_32.json').read_text()), plain, cgan, drawn(1, 2, 512), drawn(2, 4, 3, 32,
        32), torch.eye(2)[[0, 1, 1, 0]]


@torch.no_grad()
def test_lineage_32_pictures_and_codes(lineage_32):
    ref, plain, cgan, z, x, c = lineage_32
    w = plain.G.mapping(z, None)
    summary(w[:, 0], ref['mapping_w'])
    summary(plain.G(z), ref['G_uncond_img']); summary(plain.G.synthesis(w[:, 0]), ref['G_uncond_from_w'])
    summary(cgan.G(z, torch.eye(2)[[0, 1]]), ref['G_cgan_img_label01']); summary(cgan.G(z), ref['G_cgan_img_nolabel'])
    summary(plain.G.synthesis(torch.cat([w[:1, :3], w[1:, 3:]], 1)), ref['G_mix_inject3'])
    plain.G.mapping.w_avg.copy_(w[:, 0].mean(0))
    summary(plain.G(z, truncation_psi=.7), ref['G_trunc0.7_meanw'])
    close(plain.D(x)[:, 0], ref['D_uncond']); close(cgan.D(x, c)[:, 0], ref['D_cgan_labels0110'])
    summary(cgan.E(x)[:, 0], ref['E_w'])


@torch.no_grad()
def test_lineage_32_style_space_and_sefa(lineage_32):
    ref, _, cgan, z, *_ = lineage_32
    s = {k: v for k, v in cgan.G.styles(cgan.G.mapping(z)).items() if not k.endswith('torgb')}
    assert [v.shape[1] for v in s.values()] == ref['S_vector_cgan']['layers']
    summary(torch.cat([*s.values()], 1), ref['S_vector_cgan'])
    W = torch.cat([cgan.G.synthesis.get_submodule(k).affine.weight for k in s])
    assert list(W.shape) == ref['sefa']['W_shape']
    _, sv, Vh = torch.linalg.svd(W + 1e-4 * W.mean(), full_matrices=False)
    close(sv[:5], ref['sefa']['sv_top5']); close(Vh[0, :2].abs(), ref['sefa']['absV00_10'], 1e-3)


def test_lineage_32_gradients(lineage_32):
    ref, plain, cgan, z, x, c = lineage_32
    x = x.clone().requires_grad_()
    close(torch.autograd.grad(cgan.D(x, c).sum(), x)[0].square().sum([1, 2, 3]).mean(), ref['R1_penalty_cgan'])
    w = plain.G.mapping(z).clone().requires_grad_()
    g = torch.autograd.grad((plain.G.synthesis(w) * drawn(3, 2, 3, 32, 32) / 32).sum(), w)[0]
    close(g.square().sum(2).mean(1).sqrt(), ref['path_lengths_noise_RS3'])


def test_style_chexplain_16(golden, tmp_path, capsys):
    keys, ref = json.loads((golden/'sc16_keys.json').read_text()), np.load(golden/'sc16.npz')
    args = argparse.Namespace(arch='StyleEx', size=16, channel_multiplier=1, cgan=True, classifier_nof_classes=2,
        latent=512, n_mlp=8, embedding_size=10, batch=16, filter_label='Edema', compare_to_healthy=False)
    m = load_lineage_checkpoint(checkpoint(tmp_path/'048000.pt', keys, 'a', args=args))
    assert 'ignores the label: 2 classes' in capsys.readouterr().out and m.label_effect == 0
    assert (str(m.pixel_range), m.config.c_dim, m.config.nimg, m.config['size'], m.classes) == ('imagenet', 2, 768_000,
        16, ('not Edema', 'Edema'))
    z, x, c = drawn(1, 4, 512), drawn(2, 4, 3, 16, 16), torch.eye(2)[[0, 1, 1, 0]]
    with torch.no_grad():
        w = m.G.mapping(z, c)
        ours = dict(w=w[:, 0], img_const=m.G(z, c), img_from_w=m.G.synthesis(w[:, 0]), d=m.D(x, c)[:, 0],
            e=m.E(x)[:, 0])
        assert all(torch.equal(m.G(z, k), ours['img_const']) for k in (None, c.flip(1)))
    for k, v in ours.items(): close(v, ref[k])


def test_nvidia_32(golden, tmp_path):
    keys, ref = json.loads((golden/'nv32_keys.json').read_text()), np.load(golden/'nv32.npz')
    kw = dict(z_dim=512, c_dim=2, w_dim=512, img_resolution=32, img_channels=3,
        synthesis_kwargs=dict(channel_base=1024, channel_max=64, conv_clamp=256), mapping_kwargs=dict(num_layers=2))
    G, D = (recipe(keys[k], 'a', k) for k in 'GD')
    (tmp_path/'a.pkl').write_bytes(nvidia_bytes(G=('Generator', G, kw), D=('Discriminator', D, dict(c_dim=2)),
        G_ema=('Generator', G, kw)))
    p = load_nvidia_pickle(tmp_path/'a.pkl')
    G, D = from_nvidia_state(p['G_ema'], p['D'], conv_clamp=256, mbstd_group=4)
    z, x, c = drawn(1, 4, 512), drawn(2, 4, 3, 32, 32).requires_grad_(), torch.eye(2)[torch.arange(4) % 2]
    ours = dict(w=G.mapping(z, c)[:, 0], img_const=G(z, c), img_none=G(z, c, noise_mode='none'),
        img_trunc07=G(z, c, truncation_psi=.7), d=D(x, c)[:, 0], d_fake=D(G(z, c), c)[:, 0])
    ours['r1'] = torch.autograd.grad(D(x, c).sum(), x)[0].square().sum([1, 2, 3])
    for k, v in ours.items(): close(v, ref[k])
    assert label_effect(G) > .01


def listed(file, part=''):
    "Names and shapes of a key list, below a headline."
    text = file.read_text().split(f'##### {part}\n', 1)[-1].split('#####')[0]
    return {k: [int(n) for n in re.findall(r'\d+', s)] for k, s in re.findall(r'^(\S+)\t\(([^)]*)\)', text, re.M)}


def test_key_lists_at_256_are_covered(golden):
    "Every tensor of the published networks at 256 px has its place, and the shape that ours has."
    from histoxplaining import interop
    bare, ref = lambda s: [n for n in s if n != 1], golden.parent
    with torch.device('meta'):
        lineage = (('G_cgan', Generator(256, map_layers=8, channel_base=32768, feat_channels=0, const_channels=532),
            interop._generator_names(256, 8), {'embedding.weight'}),
                   ('D_cgan', Discriminator(256, 2, channel_base=32768, label_maps=True),
                       interop._trunk_names(256, True), {'embedding.weight'}),
                   ('E', Encoder(256, 14, channel_base=32768, feat_channels=0), interop._trunk_names(256, False),
                       set()))
        nvidia = ('G', Generator(256, 2, map_layers=8, feat_channels=0)), ('D', Discriminator(256, 2))
    for part, net, names, rest in lineage:
        keys, own = listed(ref/'lineage_keys_256.txt', part), net.state_dict()
        assert {k for k in keys if not k.endswith('kernel')} == set(names.values()) | rest, part
        assert all(bare(keys[t]) == bare(own[o].shape) for o, t in names.items())
    for part, net in nvidia:
        keys = {k: v for k, v in listed(ref/f'nvidia_keys_256_{part}.txt').items() if not k.endswith('resample_filter')}
        assert keys == {k: list(v.shape) for k, v in net.state_dict().items() if not k.endswith('cond_weight')}, part


# ---------------------------------------------------------------- networks of ours in their layouts

SMALL = dict(channel_base=256, channel_max=16)


def lively(net):
    "Biases and noise of a network that has seen something."
    for name, p in net.named_parameters():
        if name.endswith(('bias', 'noise_strength')): p.data.normal_(std=.1)
    return net.eval().requires_grad_(False)


def lineage_networks(c_dim, size=16, z_dim=32, n_mlp=3):
    torch.manual_seed(c_dim)
    return (lively(Generator(size, z_dim=z_dim, w_dim=z_dim, map_layers=n_mlp, feat_channels=0,
        const_channels=16 + 10 * c_dim if c_dim else None, **SMALL)),
            lively(Discriminator(size, c_dim, label_maps=c_dim > 0, **SMALL)),
                lively(Encoder(size, 2 * int(np.log2(size)) - 2, w_dim=z_dim, feat_channels=0, **SMALL)))


def to_lineage(G, D=None, E=None):
    "State dicts by the lineage's list of keys."
    s, size, g = G.state_dict(), G.size, {}
    for i in range(G.mapping.num_layers):
        g |= {f'style.{i + 1}.{p}': s[f'mapping.fc{i}.{p}'] for p in ('weight', 'bias')}
    g['input.input'] = s['synthesis.b4.const'][None]
    if g['input.input'].shape[1] > 16: g['embedding.weight'] = torch.randn(2, 10)
    noise = iter(range(99))
    def layer(t, o):
        g.update({f'{t}.conv.weight': s[f'{o}.weight'][None], f'{t}.conv.modulation.weight': s[f'{o}.affine.weight'],
            f'{t}.conv.modulation.bias': s[f'{o}.affine.bias']})
        if 'torgb' in o: g[f'{t}.bias'] = s[f'{o}.bias'].view(1, 3, 1, 1)
        else:
            g.update({f'{t}.noise.weight': s[f'{o}.noise_strength'].view(1), f'{t}.activate.bias': s[f'{o}.bias'],
                f'noises.noise_{next(noise)}': s[f'{o}.noise_const'][None, None]})
    layer('conv1', 'synthesis.b4.conv1'); layer('to_rgb1', 'synthesis.b4.torgb')
    rs = [2**i for i in range(3, 11) if 2**i <= size]
    for j, r in enumerate(rs):
        layer(f'convs.{2 * j}', f'synthesis.b{r}.conv0'); layer(f'convs.{2 * j + 1}',
            f'synthesis.b{r}.conv1'); layer(f'to_rgbs.{j}', f'synthesis.b{r}.torgb')
        g |= {f'convs.{2 * j}.conv.blur.kernel': FIR * 4, f'to_rgbs.{j}.upsample.kernel': FIR * 4}
    def trunk(net, heads):
        s = net.state_dict()
        out = {'convs.0.0.weight': s[f'b{size}.fromrgb.weight'], 'convs.0.1.bias': s[f'b{size}.fromrgb.bias'],
            'final_conv.0.weight': s['b4.conv.weight'], 'final_conv.1.bias': s['b4.conv.bias']}
        if 'label_maps' in s: out['embedding.weight'] = s['label_maps'].reshape(2, -1)
        for k, r in enumerate(rs[::-1], 1):
            out |= {f'convs.{k}.conv1.0.weight': s[f'b{r}.conv0.weight'],
                f'convs.{k}.conv1.1.bias': s[f'b{r}.conv0.bias'], f'convs.{k}.conv2.0.kernel': FIR,
                f'convs.{k}.conv2.1.weight': s[f'b{r}.conv1.weight'],
                    f'convs.{k}.conv2.2.bias': s[f'b{r}.conv1.bias'], f'convs.{k}.skip.0.kernel': FIR,
                        f'convs.{k}.skip.1.weight': s[f'b{r}.skip.weight']}
        for i, o in enumerate(heads): out |= {f'final_linear.{i}.{p}': s[f'b4.{o}.{p}'] for p in ('weight', 'bias')}
        return out
    return {'g': g, 'g_ema': dict(g)} | ({} if D is None else {'d': trunk(D, ('fc', 'out'))}) | ({} if E is None
        else {'e': trunk(E, ('out',))})


@pytest.mark.parametrize('c_dim', [0, 2, 3])
@pytest.mark.parametrize('size', [16, 32])
def test_lineage_layout_is_the_same_function(c_dim, size, tmp_path):
    G, D, E = lineage_networks(c_dim, size)
    torch.save(to_lineage(G, D, E), tmp_path/'a.pt')           # no args: everything from shapes
    m = load_lineage_checkpoint(tmp_path/'a.pt')
    z, x, c = torch.randn(4, 32), torch.randn(4, 3, size,
        size), torch.eye(c_dim)[torch.arange(4) % c_dim] if c_dim else None
    assert torch.equal(m.G(z, c), G(z)) and torch.equal(m.D(x, c), D(x, c)) and torch.equal(m.E(x), E(x))
    assert (m.config.c_dim, m.config.n_mlp, m.config.size, m.G.c_dim, m.D.c_dim) == (c_dim, 3, size, 0, c_dim)
    assert m.G.init['const_channels'] == (16 + 10 * c_dim if c_dim else None)


def test_demodulated_noisy_layer_by_its_definition(tmp_path):
    "conv1 of a file, computed from its own tensors with the formulas of StyleGAN2 and nothing of ours."
    G, _, _ = lineage_networks(2)
    ckpt = to_lineage(G)
    torch.save(ckpt, tmp_path/'a.pt')
    g, net = ckpt['g_ema'], load_lineage_checkpoint(tmp_path/'a.pt').G
    w = torch.randn(3, 32)
    s = w @ (g['conv1.conv.modulation.weight'] / 32**.5).T + g['conv1.conv.modulation.bias']
    k = g['conv1.conv.weight'] * s[:, None, :, None, None] / (36 * 9)**.5
    k = k / (k.square().sum([2, 3, 4], keepdim=True) + 1e-8).sqrt()
    x = torch.cat([torch.nn.functional.conv2d(g['input.input'], k[i], padding=1)
        for i in range(3)]) + g['conv1.noise.weight'] * g['noises.noise_0']
    x = torch.nn.functional.leaky_relu(x + g['conv1.activate.bias'].view(1, -1, 1, 1), .2) * 2**.5
    t = w @ (g['to_rgb1.conv.modulation.weight'] / 32**.5).T + g['to_rgb1.conv.modulation.bias']
    rgb = torch.einsum('nchw,nc,rc->nrhw', x, t, g['to_rgb1.conv.weight'][0, :, :, 0, 0]) / 16**.5 + g['to_rgb1.bias']
    got = {}
    hooks = [getattr(net.synthesis.b4, n).register_forward_hook(lambda m, i, o, n=n: got.update({n: o}))
        for n in ('conv1', 'torgb')]
    net.synthesis(w)
    assert (got['conv1'] - x).abs().max() < 1e-4 * x.abs().max() and (got['torgb'] -
        rgb).abs().max() < 1e-4 * rgb.abs().max()


def test_pixel_range_and_averages_of_lineage_files(tmp_path, capsys):
    G, D, E = lineage_networks(0)
    ckpt, path = to_lineage(G, D), tmp_path/'a.pt'
    def load(extra, **kw):
        return (torch.save({k: v for k, v in (ckpt | extra).items() if v is not None}, path),
            load_lineage_checkpoint(path, **kw))[1]
    plain = load({'args': argparse.Namespace(size=16, batch=4, channel_multiplier=2, arch='stylegan2')})
    assert str(plain.pixel_range) == 'pm1' and plain.E is None and plain.config.c_dim == 0
    z = torch.randn(20_000, 32, generator=torch.Generator().manual_seed(7))
    # an average of w
    assert (plain.G.mapping.w_avg - plain.G.mapping(z)[:, 0].mean(0)).abs().max() < .1 * plain.G.mapping(z)[:, 0].std()
    # always the same one
    assert torch.equal(load({}).G.mapping.w_avg, plain.G.mapping.w_avg)
    assert str(load({'args': argparse.Namespace(size=16, cgan=False)}).pixel_range) == 'imagenet'
    assert str(load({'args': {'size': 16}, 'e': to_lineage(G, D, E)['e']}).pixel_range) == 'imagenet'
    assert load({}, pixel_range=((.7, .5, .7), (.2, .2, .2))).pixel_range.mean == (.7, .5, .7)
    assert torch.equal(load({'latent_avg': torch.arange(32.)}).G.mapping.w_avg, torch.arange(32.))
    capsys.readouterr()
    assert torch.equal(load({'g_ema': None}).G.synthesis.b4.const,
        G.synthesis.b4.const) and 'no moving average' in capsys.readouterr().out
    prefixed = {k: {f'module.{n}': t for n, t in v.items()} for k, v in to_lineage(G, D, E).items()}
    assert torch.equal(load(prefixed).E(torch.ones(2, 3, 16, 16)), E(torch.ones(2, 3, 16, 16)))
    silent = {k: v for k, v in ckpt['g'].items() if not k.startswith('noises.')}
    assert torch.equal(load({'g_ema': silent}).G.synthesis.b16.conv0.noise_const,
        load({'g_ema': silent}).G.synthesis.b16.conv0.noise_const)


@pytest.mark.parametrize('change, says', [
    (lambda k: k['g_ema'].pop('to_rgbs.1.conv.modulation.bias'), 'g_ema: missing to_rgbs.1.conv.modulation.bias'),
    (lambda k: k['g_ema'].pop('input.input'), 'g_ema: missing input.input'),
    (lambda k: k['g_ema'].update(extra=torch.zeros(1)), 'g_ema: not known extra'),
    (lambda k: k['g_ema'].update({'style.2.weight': torch.zeros(32, 31)}),
        'style.2.weight is [32, 31], expected [32, 32]'),
    (lambda k: k['g_ema'].update({'style.2.weight': 'zeros'}), "'g_ema' is not a state dict"),
    (lambda k: k['g_ema'].update({'input.input': torch.zeros(1, 33, 4, 4),
        'conv1.conv.weight': torch.zeros(1, 16, 33, 3, 3)}),
        'input.input has 33 channels; expected 16 and a multiple of the 10'),
    (lambda k: k['g_ema'].update({'to_rgbs.1.upsample.kernel': torch.ones(2, 2)}),
        'g_ema: to_rgbs.1.upsample.kernel is a filter'),
    (lambda k: k['d'].update({'convs.1.skip.0.kernel': FIR.flip(0) * 4}), 'd: convs.1.skip.0.kernel is a filter'),
    (lambda k: k['d'].update({'convs.1.conv1.0.weight': torch.zeros(24, 16, 3, 3)}),
        'd: convs.1.conv1.0.weight has 24 channels, expected 16'),
    (lambda k: k['d'].update({'convs.0.0.weight': torch.zeros(16, 3, 1, 1)}), 'no label maps'),
    (lambda k: k['e'].pop('final_linear.0.bias'), 'e: missing final_linear.0.bias'),
    (lambda k: k['e'].update({'final_conv.1.bias': torch.full([16], torch.inf)}),
        'e: final_conv.1.bias holds values that are not finite'),
    (lambda k: k.update(latent_avg=torch.zeros(5)), 'latent_avg does not hold 32 numbers'),
    (lambda k: k.update(args=argparse.Namespace(size=64)), "its 'args' says 64 px, its tensors are for 16"),
    (lambda k: k.update(args=[1]), "'args' is a list"),
    (lambda k: [k.pop('g'), k.pop('g_ema')], "has neither 'g_ema' nor 'g'"),
    (lambda k: k.update(g_ema={'a': torch.zeros(1)}), 'not a generator of this kind'),
    (lambda k: k.update(d={'a': torch.zeros(1)}), 'd: not a network of this kind')])
def test_odd_checkpoints_are_named(change, says, tmp_path):
    ckpt = to_lineage(*lineage_networks(2))
    change(ckpt)
    torch.save(ckpt, tmp_path/'a.pt')
    with pytest.raises(CheckpointError) as e: load_lineage_checkpoint(tmp_path/'a.pt')
    assert says in str(e.value) and 'a.pt' in str(e.value)


# ---------------------------------------------------------------- pickles of StyleGAN2-ADA

@contextlib.contextmanager
def their_modules():
    "Modules of the names that their pickles use, there while a file is written."
    def _reconstruct_persistent_obj(meta): raise AssertionError('nothing may call this')
    class EasyDict(dict):
        def __getattr__(self, name):
            try: return self[name]
            except KeyError: raise AttributeError(name) from None
    new = {n: types.ModuleType(n) for n in ('torch_utils', 'torch_utils.persistence', 'dnnlib', 'dnnlib.util')}
    for name, module, o in (('_reconstruct_persistent_obj', 'torch_utils.persistence', _reconstruct_persistent_obj),
            ('EasyDict', 'dnnlib.util', EasyDict)):
        o.__module__, o.__qualname__ = module, name
        setattr(new[module], name, o)
    sys.modules.update(new)
    try: yield _reconstruct_persistent_obj, EasyDict
    finally:
        for n in new: del sys.modules[n]


def nvidia_bytes(protocol=4, source='raise SystemExit', version=6, easy=True, extra={}, **nets):
    "A network file in their format; `nets`: name -> (class name, state dict, keyword arguments)."
    buffers = ('w_avg', 'noise_const', 'resample_filter')
    with their_modules() as (rebuild, EasyDict):
        Easy = EasyDict if easy else dict
        class Stored:
            def __init__(self, name, tensors, kw):
                own, subs = {k: v for k, v in tensors.items() if '.' not in k}, OrderedDict()
                for k, v in tensors.items():
                    if '.' in k: subs.setdefault(k.split('.')[0], {})[k.split('.', 1)[1]] = v
                self.meta = Easy(type='class', version=version, module_src=source, class_name=name, state=dict(
                    training=False, _parameters=OrderedDict((k,
                        v if v is None else torch.nn.Parameter(v, requires_grad=False)) for k,
                        v in own.items() if k not in buffers),
                    _buffers=OrderedDict((k, v) for k, v in own.items() if k in buffers),
                        _non_persistent_buffers_set=set(), _backward_hooks=OrderedDict(),
                    weight_gain=np.float64(.5), act_gain=np.float32(2), padding=[1, 1], activation='lrelu',
                    _modules=OrderedDict((k, Stored('SynthesisLayer', v, {})) for k, v in subs.items()), _init_args=(),
                        _init_kwargs=Easy(kw)))
            def __reduce__(self): return rebuild, (self.meta,)
        data = {k: Stored(*v) if isinstance(v, tuple) else v for k, v in nets.items()}
        return pickle.dumps(data | dict(augment_pipe=Stored('AugmentPipe', {'p': torch.tensor(.3)}, {'xflip': 1}),
            training_set_kwargs=Easy(path='tissue.zip', use_labels=True)) | extra, protocol=protocol)


def to_nvidia(net):
    "Their state dict: our names, and a filter beside every convolution."
    s = {k: v for k, v in net.state_dict().items() if not k.endswith('cond_weight')}
    blocks = {m[0] for k in s if (m := re.match(r'(synthesis\.)?b\d+\.', k))}
    return s | {k.removesuffix('weight') + 'resample_filter': FIR for k in s
        if re.search(r'(conv\d?|skip|fromrgb)\.weight$', k)} | {f'{b}resample_filter': FIR for b in blocks
        if b != 'b4.'}


def nvidia_networks(c_dim=2, **kw):
    torch.manual_seed(3)
    G, D = lively(Generator(16, c_dim, 24, 32, conv_clamp=256, feat_channels=0, map_layers=3,
        **SMALL)), lively(Discriminator(16, c_dim, conv_clamp=256, **kw, **SMALL))
    G.mapping.w_avg.normal_()
    return G, D


def nvidia_file(path, G, D, **kw):
    g = ('Generator', to_nvidia(G), dict(c_dim=G.c_dim, synthesis_kwargs=dict(conv_clamp=256, num_fp16_res=4)))
    path.write_bytes(nvidia_bytes(G=g, D=('Discriminator', to_nvidia(D),
        dict(conv_clamp=256, epilogue_kwargs=dict(mbstd_group_size=2))), G_ema=g, **kw))
    return path


@pytest.mark.parametrize('c_dim', [0, 2, 5])
def test_nvidia_layout_is_the_same_function(c_dim, tmp_path):
    G, D = nvidia_networks(c_dim)
    p = load_nvidia_pickle(nvidia_file(tmp_path/'a.pkl', G, D))
    G2, D2 = from_nvidia_state(p.G_ema, p.D)
    z, x, c = torch.randn(4, 24), torch.randn(4, 3, 16,
        16), torch.eye(c_dim)[torch.arange(4) % c_dim] if c_dim else None
    for kw in ({}, dict(truncation_psi=.5), dict(noise_mode='none')): assert torch.equal(G2(z, c, **kw), G(z, c, **kw))
    assert torch.equal(D2(x, c), D(x, c)) and (G2.c_dim, D2.c_dim) == (c_dim, c_dim)
    assert (label_effect(G2) > 0) == (c_dim > 0)


@pytest.mark.parametrize('protocol, core', [(3, 'numpy.core'), (3, 'numpy._core'), (4, 'numpy._core'),
    (5, 'numpy._core')])
def test_nvidia_pickles_of_all_ages(protocol, core, tmp_path):
    G, D = nvidia_networks()
    path = nvidia_file(tmp_path/'a.pkl', G, D, protocol=protocol, easy=protocol < 5)
    path.write_bytes(path.read_bytes().replace(b'cnumpy._core.', b'c' + core.encode() + b'.'))
    p = load_nvidia_pickle(path)
    assert core.encode() in path.read_bytes()
    assert (p.G_ema.class_name, p.G_ema.init_kwargs['c_dim'], p.training_set_kwargs['path'],
        float(p.augment_pipe['p'])) == ('Generator', 2, 'tissue.zip', pytest.approx(.3))
    assert all(torch.equal(v, p.G_ema[k]) for k, v in to_nvidia(G).items()) and p.G_ema.keys() == to_nvidia(G).keys()


def test_minibatch_group_and_clamp_are_taken_over(tmp_path):
    G, D = nvidia_networks(mbstd_group=2)
    x, c = torch.randn(4, 3, 16, 16), torch.eye(2)[[0, 1, 1, 0]]
    D2 = from_nvidia_state(to_nvidia(G), to_nvidia(D), conv_clamp=.5, mbstd_group=2)[1]
    assert not torch.equal(D2(x, c), D(x, c)) and D2.init['conv_clamp'] == .5
    assert torch.equal(from_nvidia_state(to_nvidia(G), to_nvidia(D), mbstd_group=2)[1](x, c), D(x, c))
    bare = Discriminator(16, mbstd_group=0, **SMALL)
    assert torch.equal(from_nvidia_state(to_nvidia(G), to_nvidia(bare), conv_clamp=None)[1](x), bare(x))
    assert from_nvidia_state(to_nvidia(G), None)[1] is None


@pytest.mark.parametrize('net, change, says', [
    ('G', lambda s: s.pop('synthesis.b8.conv0.affine.bias'), 'G: missing synthesis.b8.conv0.affine.bias'),
    ('G', lambda s: s.update({'synthesis.b8.conv0.noise_const': torch.zeros(4, 4)}),
        'synthesis.b8.conv0.noise_const is [4, 4], expected [8, 8]'),
    ('G', lambda s: s.update({'synthesis.b8.resample_filter': torch.ones(12, 12) / 144}),
        'G: synthesis.b8.resample_filter is a filter'),
    ('G', lambda s: s.update({'synthesis.input.freqs': torch.zeros(4, 2)}), 'alias-free generator of StyleGAN3'),
    ('G', lambda s: s.update({'synthesis.b8.skip.weight': torch.zeros(16, 16, 1, 1)}), "not the 'skip' architecture"),
    ('G', lambda s: s.pop('synthesis.b16.conv1.weight'), 'not a StyleGAN2 generator of 16 px or more'),
    ('G', lambda s: s.update({'synthesis.b4.torgb.weight': torch.zeros(1, 16, 1, 1)}), 'pictures of 1 channels'),
    ('G', lambda s: s.update({'mapping.fc0.weight': torch.zeros(32, 32)}), 'too narrow for z'),
    ('D', lambda s: s.pop('b8.skip.weight'), "not the 'resnet' architecture"),
    ('D', lambda s: s.update({'b4.conv.weight': torch.zeros(16, 19, 3, 3)}), 'reads 3 channels of minibatch deviation'),
    ('D', lambda s: s.update({'b4.out.bias': torch.zeros(1)}), 'D: b4.out.bias is [1], expected [16]'),
    ('D', lambda s: s.update(head=torch.zeros(1)), 'D: not known head')])
def test_odd_nvidia_states_are_named(net, change, says):
    states = dict(zip('GD', map(to_nvidia, nvidia_networks())))
    change(states[net])
    with pytest.raises(CheckpointError, match=re.escape(says)): from_nvidia_state(states['G'], states['D'])


def test_odd_nvidia_files_are_named(tmp_path):
    G, D = nvidia_networks()
    g = ('Generator', to_nvidia(G), {})
    for nets, says in ((dict(G=g, D=g), 'no G_ema'),
            (dict(G=g, D=g, G_ema=3), 'G_ema: expected a stored network, found int'),
            (dict(G=g, D=g, G_ema=g, version=7), 'version 7'),
                       (dict(G=g, D=g, G_ema=('Generator', {}, {}), extra=dict(G_ema=[])),
                               'G_ema: expected a stored network, found list')):
        (tmp_path/'a.pkl').write_bytes(nvidia_bytes(**nets))
        with pytest.raises(CheckpointError) as e: load_nvidia_pickle(tmp_path/'a.pkl')
        assert says in str(e.value) and 'a.pkl' in str(e.value)


# ---------------------------------------------------------------- hostile files

class Gadget:
    "Unpickles to a call."
    def __init__(self, fn, *args): self.call = fn, args
    def __reduce__(self): return self.call


class Setter:
    "Unpickles to an object whose state is another gadget's call."
    def __init__(self, inner): self.inner = inner
    def __reduce__(self): return OrderedDict, (), {'x': self.inner}


def touch(canary): return f'touch {canary}'


def saved(obj, path, **kw):
    torch.save(obj, path, **kw)
    return path


def object_array(canary):
    np.save(path := canary.with_name('objects.npy'), np.array([Gadget(os.system, touch(canary))], dtype=object),
        allow_pickle=True)
    return str(path)


GADGETS = {  # ways to make a file run a command: name -> function of the file that the command would create
    'system': lambda c: Gadget(os.system, touch(c)),
    'eval': lambda c: Gadget(eval, f'open({str(c)!r}, "w").close()'),
    'exec': lambda c: Gadget(exec, f'open({str(c)!r}, "w").close()'),
    'popen': lambda c: Gadget(subprocess.check_call, ['touch', str(c)]),
    'method': lambda c: Gadget(Path.touch, c),
    'partial': lambda c: Gadget(operator.call, functools.partial(os.system, touch(c))),
    'state of an object': lambda c: Setter(Gadget(os.system, touch(c))),
    'array of objects': lambda c: np.array([Gadget(os.system, touch(c))], dtype=object),
    'numpy.load': lambda c: Gadget(np.load, object_array(c), None, True),
    'torch.load': lambda c: Gadget(operator.call, functools.partial(torch.load,
        saved(Gadget(os.system, touch(c)), c.with_name('p.pt')), weights_only=False)),
    'storage': lambda c: Gadget(torch.storage._load_from_bytes,
        saved(Gadget(os.system, touch(c)), c.with_name('p.pt')).read_bytes()),
    'old storage': lambda c: Gadget(torch.storage._load_from_bytes,
        saved(Gadget(os.system, touch(c)), c.with_name('p.pt'), _use_new_zipfile_serialization=False).read_bytes())}


@pytest.mark.parametrize('name', GADGETS)
def test_nothing_in_a_file_runs(name, tmp_path):
    canary, path = tmp_path/'canary', tmp_path/'in.pkl'
    gadget = GADGETS[name](canary)
    pickle.loads(pickle.dumps(gadget))
    assert canary.exists()                                        # it would have run: this is no straw man
    canary.unlink()
    network = ('Generator', to_nvidia(nvidia_networks()[0]), {'z_dim': gadget})
    dump = lambda obj: path.write_bytes(pickle.dumps(obj))
    for write, readers in (
        (lambda: dump(gadget), (load_nvidia_pickle, load_inception_pickle, load_pickle)),
        (lambda: dump({'mean': np.zeros(2), 'cov': gadget, 'size': 64, 'path': 'x'}), (load_inception_pickle,)),
        (lambda: dump({'G': gadget, 'D': None, 'G_ema': None}), (load_nvidia_pickle,)),
        (lambda: path.write_bytes(nvidia_bytes(G=network, D=network, G_ema=network)), (load_nvidia_pickle,)),
        (lambda: saved({'g_ema': gadget}, path), (load_lineage_checkpoint, load_tensors)),
        (lambda: saved({'g_ema': {}, 'args': argparse.Namespace(size=gadget)}, path,
                _use_new_zipfile_serialization=False), (load_lineage_checkpoint,))):
        write()
        for read in (*readers, lambda p: convert(p, tmp_path/'out')):
            with pytest.raises(CheckpointError, match='in.pkl'): read(path)
            assert not canary.exists() and not (tmp_path/'out').exists()


def stack_global(*names):
    return b'\x80\x04' + b''.join(b'\x8c' + bytes([len(n)]) + n.encode() for n in names) + b'\x93.'


@pytest.mark.parametrize('raw, says', [
    (b"(S'touch CANARY'\nios\nsystem\n.", 'os.system'),                                              # INST
    (b"(cos\nsystem\nS'touch CANARY'\no.", 'os.system'),                                             # OBJ
    # dotted names, above and below what is known
    (stack_global('torch', '_utils.sys.modules'), 'asks for torch._utils.sys.modules'),
    (stack_global('torch._utils', '_rebuild_tensor_v2.__globals__'),
        'asks for torch._utils._rebuild_tensor_v2.__globals__'),
    # sets an attribute of what it may call
    (b"\x80\x02ccollections\nOrderedDict\nN}U\x05valueU\x01xs\x86b.", 'tries to change what it was given'),
    (b"\x80\x02ccollections\nOrderedDict\n)\x81.", 'in.pkl'),
    (b"\x80\x02ccollections\nOrderedDict\n.", 'function or a class in place of data'),
    # persistent id
    (b"\x80\x02X\x01\x00\x00\x00aQ.", 'refers to something outside itself'),
    # a tensor without a storage
    (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(U\x01xK\x00))tR.", 'in.pkl'),
    (b'', 'cut short'), (b'hello', 'in.pkl')])
def test_hand_made_pickles_are_refused(raw, says, tmp_path):
    (tmp_path/'in.pkl').write_bytes(raw.replace(b'CANARY', str(tmp_path/'canary').encode()))
    for read in (load_pickle, load_nvidia_pickle, load_inception_pickle):
        with pytest.raises(CheckpointError, match=says): read(tmp_path/'in.pkl')
    assert not (tmp_path/'canary').exists()


def test_source_text_of_a_network_is_never_run(tmp_path, monkeypatch):
    G, D = nvidia_networks()
    path = nvidia_file(tmp_path/'a.pkl', G, D, source=f"open({str(tmp_path/'canary')!r}, 'w').close()")
    for name in ('exec', 'eval', 'compile'):
        monkeypatch.setattr(f'builtins.{name}', lambda *a, **k: pytest.fail('ran something'))
    load_nvidia_pickle(path)
    monkeypatch.undo()
    assert not (tmp_path/'canary').exists()


def test_hx_convert_of_a_hostile_file_ends_in_one_line(tmp_path):
    for name, write in (('a.pkl', pickle.dumps), ('a.pt', lambda o: saved(o, tmp_path/'x').read_bytes()),
            ('inception_a.pkl', lambda o: pickle.dumps({'mean': o, 'cov': o}))):
        (tmp_path/name).write_bytes(write(Gadget(os.system, touch(tmp_path/'canary'))))
        status, line = shell('hx_convert', tmp_path/name, tmp_path/'out')
        assert (
            status == 2
            and line.startswith('error: ')
            and name in line
            and f'{os.system.__module__}.system' in line
            and 'xecuted' in line
        ), line
    assert not (tmp_path/'canary').exists() and not (tmp_path/'out').exists()


def test_tensors_stay_within_their_storage(tmp_path):
    def tensor(size, stride, offset=0):
        storage = torch.storage.TypedStorage(wrap_storage=torch.arange(6.).untyped_storage(), dtype=torch.float32,
            _internal=True)
        class View:
            def __reduce__(self):
                return torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, OrderedDict())
        (tmp_path/'in.pkl').write_bytes(pickle.dumps({'t': View()}))
        return load_pickle(tmp_path/'in.pkl')['t']
    assert torch.equal(tensor((3, 2), (1, 3)), torch.arange(6.).view(2, 3).T)
    for bad in (((3, 3), (3, 1)), ((2, 3), (3, 1), 1), ((2, 3), (-3, 1), 3), ((2**40,), (0,)), ((2, 3), (3,)),
            ((-1,), (1,))):
        with pytest.raises(CheckpointError, match='in.pkl'): tensor(*bad)


def test_cut_files_are_named(tmp_path):
    G, D, E = lineage_networks(2)
    torch.save(to_lineage(G, D, E), tmp_path/'a.pt')
    nvidia_file(tmp_path/'b.pkl', *nvidia_networks())
    (tmp_path/'c.pkl').write_bytes(pickle.dumps(dict(mean=np.zeros(8), cov=np.eye(8), size=32, path='x')))
    for name, read in (('a.pt', load_lineage_checkpoint), ('b.pkl', load_nvidia_pickle),
            ('c.pkl', load_inception_pickle)):
        whole = (tmp_path/name).read_bytes()
        for n in (0, 1, 10, len(whole) // 3, len(whole) // 2, len(whole) - 1):
            (tmp_path/name).write_bytes(whole[:n])
            for r in (read, lambda p: convert(p, tmp_path/'out')):
                with pytest.raises(CheckpointError, match=re.escape(name)): r(tmp_path/name)
        assert not (tmp_path/'out').exists()
        with pytest.raises(CheckpointError, match='no such file'): read(tmp_path/'absent.pkl')


@pytest.mark.filterwarnings('ignore')
def test_damaged_bytes_never_end_in_another_error(tmp_path):
    rng, path = np.random.RandomState(0), tmp_path/'a.pkl'
    torch.save(to_lineage(*lineage_networks(2)), tmp_path/'l.pt', _use_new_zipfile_serialization=False)
    files = ((nvidia_file(tmp_path/'n.pkl', *nvidia_networks()).read_bytes(), load_nvidia_pickle),
        ((tmp_path/'l.pt').read_bytes(), load_lineage_checkpoint),
             (pickle.dumps(dict(mean=np.zeros(8), cov=np.eye(8), size=32, path='x')), load_inception_pickle))
    refused = 0
    for whole, read in files:
        for _ in range(40):
            raw = bytearray(whole)
            for i in rng.randint(0, min(len(raw), 6000), rng.choice([1, 2, 8])): raw[i] = rng.randint(256)
            path.write_bytes(raw)
            try: read(path)
            except CheckpointError as e:
                assert 'a.pkl' in str(e)
                refused += 1
    assert refused > 20


def test_inception_statistics_are_checked(tmp_path):
    good = dict(mean=np.arange(3.), cov=np.eye(3), size=32, path='x.lmdb')
    for change, says in (({'cov': np.eye(4)}, r'found \[3\] and \[4, 4\]'), ({'mean': [0, 1, 2]}, 'list'),
            ({'cov': np.full((3, 3), np.nan)}, 'not finite'), ({'mean': np.zeros(3, bool)}, 'expected mean')):
        (tmp_path/'a.pkl').write_bytes(pickle.dumps(good | change))
        with pytest.raises(CheckpointError, match=says): load_inception_pickle(tmp_path/'a.pkl')
    for protocol in (3, 4, 5):
        raw = pickle.dumps(good | {'cov': np.asfortranarray(np.arange(9, dtype='>f4').reshape(3, 3))},
            protocol=protocol)
        (tmp_path/'a.pkl').write_bytes(raw.replace(b'cnumpy._core.', b'cnumpy.core.'))
        assert np.array_equal(load_inception_pickle(tmp_path/'a.pkl')['cov'], np.arange(9.).reshape(3, 3))


# ---------------------------------------------------------------- conversion

def test_a_converted_checkpoint_is_the_same_to_the_bit(tmp_path):
    G, D, E = lineage_networks(2)
    torch.save(to_lineage(G, D, E) | {'args': argparse.Namespace(cgan=True, size=16, arch='StyleEx', batch=8)},
        tmp_path/'001000.pt')
    status, line = shell('hx_convert', tmp_path/'001000.pt', tmp_path/'model', '--classes', 'healthy,ill')
    assert status == 0 and 'generator that ignores its label' in line and 'healthy, ill' in line
    G2, E2, clf, card = load_model(tmp_path/'model')
    z, x = torch.randn(2, 32), torch.randn(2, 3, 16, 16)
    assert torch.equal(G2(z), G(z)) and torch.equal(E2(x), E(x)) and clf is None
    assert (card['classes'], card['label_inert'], card['nimg'], card['arch'], card['source']['file'],
        PixelRange.of(card['pixel_range'])) == (['healthy', 'ill'], True, 8000, 'StyleEx', '001000.pt',
        PixelRange.of('imagenet'))
    ex = Explainer.load(tmp_path/'model')
    mean, std = (torch.tensor(v)[:, None, None] for v in ((.485, .456, .406), (.229, .224, .225)))
    w = ex.mapping([5], 'ill')
    assert torch.allclose(ex.generate(w), (G.synthesis(w) * std + mean) * 2 - 1, atol=1e-5) and torch.equal(w,
        ex.mapping([5], 'healthy'))
    assert 'ill; 16 px' in repr(ex)
    status, line = command(hx_convert, tmp_path/'001000.pt', tmp_path/'model')
    assert status == 2 and 'exists already' in line
    status, line = command(hx_convert, tmp_path/'001000.pt', tmp_path/'model', overwrite=True, pixel_range='pm1',
        half=True)
    assert status == 0 and torch.allclose(load_model(tmp_path/'model')[0](z), G(z), atol=.05)
    assert torch.equal(Explainer.load(tmp_path/'model').generate(w), load_model(tmp_path/'model')[0].synthesis(w))
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'thesis.txt').write_text('years of work')
    status, line = command(hx_convert, tmp_path/'001000.pt', tmp_path/'mine', overwrite=True)
    assert status == 2 and (tmp_path/'mine'/'thesis.txt').exists()


def test_a_classifier_comes_along_and_sees_what_it_saw(tmp_path):
    """Their classifier was given the generator's pictures as they are; ours is given true colours and must answer
    the same."""
    import timm
    torch.manual_seed(0)
    G, D, E = lineage_networks(2, 32)
    model = timm.create_model('resnet10t', num_classes=2).eval()
    torch.save(model.state_dict(), tmp_path/'clf.pth')
    torch.save(to_lineage(G, D, E), tmp_path/'a.pt')
    convert(tmp_path/'a.pt', tmp_path/'model', classes=['healthy', 'ill'], classifier=tmp_path/'clf.pth',
        classifier_arch='resnet10t')
    ex = Explainer.load(tmp_path/'model')
    with torch.no_grad():
        w = ex.mapping([1, 2, 3])
        assert torch.allclose(ex.classify(ex.generate(w)), model(G.synthesis(w)), atol=1e-3)
        tiles = synthetic_tiles(3, 32, seed=0)[0]
        assert ex.classes == ('healthy', 'ill') and ex.probabilities(tiles).shape == (3,
            2) and ex.reconstruct(tiles).shape == (3, 3, 32, 32)
    with pytest.raises(CheckpointError, match='outputs'):
        convert(tmp_path/'a.pt', tmp_path/'b', classes=['a', 'b', 'c'], classifier=tmp_path/'clf.pth',
            classifier_arch='resnet10t')
    assert not (tmp_path/'b').exists()


def test_a_converted_pickle_can_be_looked_at_but_not_explained_with(tmp_path):
    G, D = nvidia_networks(mbstd_group=2)
    status, line = command(hx_convert, nvidia_file(tmp_path/'network-snapshot-000200.pkl', G, D), tmp_path/'model',
        classes='benign,tumour')
    assert status == 0 and 'generator, discriminator' in line, line
    ex = Explainer.load(tmp_path/'model')
    z, c = torch.randn(2, 24), torch.eye(2)
    assert torch.equal(ex.G(z, c), G(z, c)) and ex.card['nimg'] == 200_000 and not ex.card['label_inert']
    assert torch.equal(ex.generate(ex.mapping([1], 'tumour')),
        G.synthesis(ex.mapping([1], 'tumour'))) and not torch.equal(ex.mapping([1], 'tumour'),
        ex.mapping([1], 'benign'))
    tiles = synthetic_tiles(1, 16, seed=0)[0]
    with pytest.raises(HxError, match='has no encoder'): ex.encode(tiles)
    with pytest.raises(HxError, match='has no classifier'): ex.classify(torch.zeros(1, 3, 16, 16))
    with pytest.raises(HxError, match='not trained on a tile store'): ex.store()


# ---------------------------------------------------------------- data sets

def write_lmdb(path, pictures, labels=None, length=None):
    "`pictures`: size -> list of bytes; `labels`: list of bytes."
    with lmdb.open(str(path), map_size=2**26) as env, env.begin(write=True) as txn:
        txn.put(b'length', str(len(next(iter(pictures.values()))) if length is None else length).encode())
        for size, ps in pictures.items():
            for i, p in enumerate(ps): txn.put(f'{size}-{str(i).zfill(5)}'.encode(), p)
            for i, l in enumerate(labels or []): txn.put(f'{size}-{str(i).zfill(5)}-label'.encode(), bytes(l))
    return path


@pytest.fixture(scope='module')
def tissue():
    tiles, y, _ = synthetic_tiles(40, 32, seed=2)
    return tiles, y, [png_bytes(t) for t in tiles]


@pytest.mark.parametrize('kind', ['columns', 'one-hot', 'byte'])
def test_lmdb_labels_of_all_widths(kind, tissue, tmp_path):
    tiles, y, files = tissue
    labels = {'columns': np.eye(14, dtype=np.uint8)[2 * y].tolist(), 'one-hot': np.eye(2, dtype=np.uint8)[y].tolist(),
        'byte': [[k] for k in y]}[kind]
    names = ['No Finding', 'Cardiomegaly'] if kind == 'columns' else ['class 0', 'class 1']
    store = LineageStore(write_lmdb(tmp_path/'a.lmdb', {32: files}, labels)).to_store(tmp_path/'b.lmdb',
        classes=dict(zip(('benign', 'tumour'), names)), val=.2)
    assert np.array_equal(store.labels, y) and all(np.array_equal(store[i][0], tiles[i]) for i in (0, 17, 39))
    status, line = command(hx_tiles, tmp_path/'a.lmdb', tmp_path/'c.lmdb', size=16,
        classes=f'benign={names[0]},tumour={names[1]}')
    assert status == 0, line
    assert np.array_equal(TileStore(tmp_path/'c.lmdb').labels, y) and TileStore(tmp_path/'c.lmdb').size == 16


def test_lmdb_in_several_sizes_opened_more_than_once(tissue, tmp_path):
    tiles, y, files = tissue
    small = [png_bytes(t[::2, ::2]) for t in tiles]
    path = write_lmdb(tmp_path/'a.lmdb', {32: files, 16: small[:30]}, [[k] for k in y])
    # whoever tries that first does not block it for the process
    with pytest.raises(DataError, match='without a manifest'): TileStore(path)
    a, b = LineageStore(path), LineageStore(path, size=32, names=('benign', 'tumour'))
    assert a.sizes == {16: 30, 32: 40} and a.size == 32 and b.counts == {'benign': int((y == 0).sum()),
        'tumour': int((y == 1).sum())}
    assert np.array_equal(a[3][0], tiles[3]) and a[3][1].tolist() == [y[3]] and np.array_equal(b[-1][0], tiles[-1])
    with pytest.raises(DataError,
            match='10 of 40 pictures of 16 px are missing: 16-00030, 16-00031, 16-00032 and 7 more'): LineageStore(path,
            size=16)
    with pytest.raises(DataError, match='no pictures of 64 px; found 16, 32'): LineageStore(path, size=64)


def test_tiles_of_several_classes_are_left_out_and_counted(tissue, tmp_path, capsys):
    _, y, files = tissue
    rows = np.zeros((40, 14), np.uint8); rows[np.arange(40), 5 * y] = 1
    # both; none; another column beside it; "uncertain"
    rows[0, [0, 5]] = 1; rows[1] = 0; rows[2, 13] = 1; rows[3, 5 * y[3]] = 255
    store = LineageStore(write_lmdb(tmp_path/'a.lmdb', {32: files}, rows.tolist()))
    s = store.to_store(tmp_path/'b.lmdb', classes=['No Finding', 'Edema'], size=16)
    assert len(s) == 37
    assert (
        'left out 2 tiles that are of none of the classes No Finding, Edema, and 1 that are of several'
        in capsys.readouterr().out
    )
    assert len(store.to_store(tmp_path/'c.lmdb', classes={'no': 'not Edema', 'yes': 'Edema'}, size=16)) == 40
    with pytest.raises(DataError, match='have several labels; name the classes'):
        store.to_store(tmp_path/'d.lmdb', size=16)
    with pytest.raises(DataError, match="no class 'Oedema'; found No Finding, Enlarged"):
        store.to_store(tmp_path/'d.lmdb', classes=['No Finding', 'Oedema'], size=16)
    assert not (tmp_path/'d.lmdb').exists()


def test_odd_lmdbs_are_named(tissue, tmp_path):
    files = tissue[2][:4]
    def odd(name, says, pictures={32: files}, edit=None, **kw):
        path = write_lmdb(tmp_path/name, pictures, **kw)
        if edit:
            with lmdb.open(str(path), map_size=2**26) as env, env.begin(write=True) as txn: edit(txn)
        with pytest.raises(DataError) as e: LineageStore(path)
        assert says in str(e.value) and name in str(e.value)
        status, line = command(hx_tiles, path, tmp_path/'out.lmdb')
        assert status == 2 and name in line and not (tmp_path/'out.lmdb').exists()
    odd('a.lmdb', "without the key 'length'", edit=lambda t: t.delete(b'length'))
    odd('b.lmdb', "expected a count", length='-4')
    odd('c.lmdb', '32-00002', edit=lambda t: t.delete(b'32-00002'))
    odd('d.lmdb', '1 of 4 labels are missing: 32-00001-label', labels=[[0]] * 4,
        edit=lambda t: t.delete(b'32-00001-label'))
    odd('e.lmdb', '32-00003-label has 3 bytes, 32-00000-label has 2', labels=[[0, 1]] * 3 + [[0, 1, 0]])
    data = (tmp_path/'a.lmdb'/'data.mdb').read_bytes()
    (tmp_path/'cut.lmdb').mkdir(); (tmp_path/'cut.lmdb'/'data.mdb').write_bytes(data[:len(data) // 2])
    with pytest.raises(DataError, match='cut.lmdb'): LineageStore(tmp_path/'cut.lmdb')
    path = write_lmdb(tmp_path/'f.lmdb', {32: [files[0], b'\xff\xd8 not a picture', files[2], b'GIF89a']},
        [[0], [0], [1], [1]])
    store = LineageStore(path).to_store(tmp_path/'g.lmdb')
    assert len(store) == 2 and [n for n, _ in store.manifest['skipped']] == ['32-00001.jpg', '32-00003.unknown']
    with pytest.raises(DataError, match='32-00001'): LineageStore(path)[1]


def nvidia_zip(path, files, labels, folder=''):
    with zipfile.ZipFile(path, 'w') as z:
        for i, f in enumerate(files): z.writestr(f'{folder}00000/img{i:08d}.png', f)
        if labels is not None: z.writestr(f'{folder}dataset.json', json.dumps({'labels': labels}))
    return path


@pytest.mark.parametrize('folder', ['', 'export/'])
@pytest.mark.parametrize('as_vector', [False, True])
def test_nvidia_data_sets_become_stores(folder, as_vector, tissue, tmp_path):
    tiles, y, files = tissue
    rows = [[f'00000/img{i:08d}.png', [1. - k, float(k)] if as_vector else int(k)] for i, k in enumerate(y)]
    path = nvidia_zip(tmp_path/'a.zip', files, rows, folder)
    status, line = command(hx_tiles, path, tmp_path/'b.lmdb', size=32, classes='tumour=class 1,benign=class 0')
    assert status == 0, line
    store = TileStore(tmp_path/'b.lmdb')
    assert store.classes == ('tumour', 'benign') and np.array_equal(store.labels, 1 - y) and np.array_equal(store[5][0],
        tiles[5])
    with zipfile.ZipFile(path) as z: z.extractall(tmp_path/'dir')
    assert TileStore.create(tmp_path/'dir'/folder, tmp_path/'c.lmdb', size=32).classes == ('class 0', 'class 1')


def test_nvidia_data_sets_without_labels_or_with_odd_ones(tissue, tmp_path):
    _, y, files = tissue
    name = '00000/img{:08d}.png'.format
    # no dataset.json: by folder, as any zip
    store = TileStore.create(nvidia_zip(tmp_path/'tissue.zip', files, None), tmp_path/'none.lmdb', size=32)
    assert store.classes == ('00000',)
    with zipfile.ZipFile(tmp_path/'null.zip', 'w') as z:
        for i, f in enumerate(files): z.writestr(name(i), f)
        z.writestr('dataset.json', '{"labels": null}')
    assert TileStore.create(tmp_path/'null.zip', tmp_path/'null.lmdb', size=32,
        classes=['tissue']).counts == {'tissue': 40}
    rows = [[name(i), int(k)] for i, k in enumerate(y)]
    for labels, says in ((rows[:-2], 'no label for 2 of 40 pictures: 00000/img00000038.png, 00000/img00000039.png'),
            (rows + [rows[0]], 'img00000000.png is listed twice'), ([[name(0), 'tumour']], 'expected a class'),
                         ([[name(0), True]], 'expected a class'),
                                 (rows[:-1] + [[name(39), [0, 1]]], 'labels of 2 kinds'), ({'a': 1}, 'expected a list'),
                                 ([[name(0)]], 'expected [name, label]')):
        with pytest.raises(DataError) as e:
            TileStore.create(nvidia_zip(tmp_path/'odd.zip', files, labels), tmp_path/'odd.lmdb', size=32)
        assert says in str(e.value) and 'odd.zip: dataset.json' in str(e.value) and not (tmp_path/'odd.lmdb').exists()
    more = nvidia_zip(tmp_path/'more.zip', files, rows + [['00000/img00000099.png', 1]])
    assert TileStore.create(more, tmp_path/'more.lmdb', size=32).manifest['skipped'][0][0] == '00000/img00000099.png'
    with pytest.raises(DataError, match='img00000099.png'):
        TileStore.create(more, tmp_path/'raise.lmdb', size=32, on_error='raise')
