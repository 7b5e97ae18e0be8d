"""Generator, encoder and the classifier that they explain, trained on together on a GPU, and then the prior on the new
codes: what the classifier says of a tile is to hold for its reconstruction, and the other way round.

    python benchmarks/together.py MODEL STORE OUT [--seconds 350] [--first .6]

MODEL is a model folder with a prior. It ends about so many seconds after the start; of what reading the tiles leaves of
them, a share is the first part's, with 1 there is no second. Rates fall towards the end of each. --e_lr 0 holds the
encoder, so that the prior stays true. OUT gets the networks in float16 and a log with figures of held-out tiles:
`within`, the share of which no probability differs by more than a tenth between tile and reconstruction."""
import argparse, copy, json, math, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F

from histoxplaining.augmentation import dihedral_batch, light
from histoxplaining.checkpoints import load_model, load_network
from histoxplaining.classifier import Classifier, _blurred, calibrated
from histoxplaining.features import perceptual
from histoxplaining.files import load_meta, load_tensors, save_tensors
from histoxplaining.images import moments_of_stain, restain, stain_jitter, zoom
from histoxplaining.layers import reduced
from histoxplaining.losses import g_hinge
from histoxplaining.prior import Prior, prior_terms
from histoxplaining.tiles import TileStore
from histoxplaining import training_step as ts

START = time.time()


def loaded(path, device, held=80):
    "Tiles uint8 [n, 3, H, W] on the device and labels: those to learn from, and so many held-out ones of each class."
    store = TileStore(path)
    rng, val = np.random.default_rng(0), store.val
    some = [rng.permutation(np.flatnonzero(val.labels == k))[:held] for k in range(len(store.classes))]
    out = []
    for view in (store.train, val.subset(np.concatenate(some))):
        with ThreadPoolExecutor() as pool: t = np.stack(list(pool.map(lambda i: view[i][0], range(len(view)))))
        out.append((torch.from_numpy(t).permute(0, 3, 1, 2).contiguous().to(device),
            torch.tensor(view.labels).long().to(device)))
    return out

def unit(x): return x.float() / 127.5 - 1

def varied(x, moments):
    "Half of the tiles as they are, a quarter in another stain and scale, a quarter in the stain of another tile."
    n, u = len(x), 2 * torch.rand(len(x), 5, device=x.device) - 1
    jitter = stain_jitter(zoom(x, 1.25**u[:, 0]), 1 + .2 * u[:, 1:3], .05 * u[:, 3:])
    other = restain(x, moments[torch.randint(len(moments), (n,), device=x.device)])
    q = torch.rand(n, 1, 1, 1, device=x.device)
    return torch.where(q < .5, x, torch.where(q < .75, jitter, other)).clamp(-1, 1)

def turned(x): return dihedral_batch(x, torch.randint(8, (len(x),), device=x.device))

def passed_on(x):
    "Every other one turned, and blurred or with noise."
    k = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1) % 4
    blurred = _blurred(x, .1 + 1.1 * torch.rand(len(x), device=x.device))
    noisy = x + .08 * torch.rand(len(x), 1, 1, 1, device=x.device) * torch.randn_like(x)
    return torch.where(k == 1, turned(blurred), torch.where(k == 3, turned(noisy), x))

def progress(begin, until): return (time.time() - begin) / max(until - begin, 1)

def falling(done, flat=.6): return max(.5 + .5 * math.cos(math.pi * max(done - flat, 0) / (1 - flat)), .01)

def moved(avg, net, beta):
    torch._foreach_lerp_(list(avg.parameters()), list(net.parameters()), 1 - beta)


class Batch:
    "Batches with every class equally often."
    def __init__(self, y, n):
        self.y, self.n, self.where = y, n, [(y == k).nonzero()[:, 0] for k in range(int(y.max()) + 1)]

    def __call__(self):
        some = -(-self.n // len(self.where))
        i = torch.cat([w[torch.randint(len(w), (some,), device=w.device)] for w in self.where])
        return i[torch.randperm(len(i), device=i.device)[:self.n]]


def started(a, n_classes):
    "The state of training as the package has it, with the weights of the model."
    G, E, clf, card = load_model(a.model)
    keep = {k: v for k, v in G.init.items() if k in ('channel_base', 'channel_max', 'map_layers', 'const_channels')}
    cfg = ts.resolve(ts.TrainConfig(arch='StyleEx', init=str(a.model), kimg=1000, ae_kimg=0, batch=a.batch,
        device=a.device, feat_swap=a.swap, encode_share=1., kl_weight=a.kl, kl_ramp=1e-9, proj_weight=a.adv,
        l1_weight=4., ema_kimg=a.ema_kimg, num_fp16_res=a.fp16, lr=a.lr, e_lr=a.e_lr, bf16=False, **keep), G.size,
        G.init)
    st = ts.TrainState(cfg, n_classes)
    for k, net in dict(G=G, E=E).items(): st.nets[k].load_state_dict(net.state_dict())
    st.average_afresh()
    st.G.mapping.cond_weight.fill_(1)
    if not a.e_lr: st.nets['E'].requires_grad_(False); del st.opts['E']
    return st, cfg, clf.to(a.device)

def generator_step(st, cfg, clf, before, dist, x, adversarial):
    "As `train_step` does it for encoded tiles, but the classifier looks at tile and picture in the same orientation."
    idx = list(range(st.nimg, st.nimg + len(x)))
    with torch.no_grad():
        views = torch.randint(8, (len(x),), device=x.device)
        asked = clf(dihedral_batch(x, views))
        c = calibrated(clf(x), clf.temperature)
    fk = ts.synthesise(st, cfg, x, c, idx)
    t = ts._compared(st, cfg, dist, x, fk)
    place = torch.arange(len(x), device=x.device)
    own = (fk.get('of', place) == place).float()                       # pictures of which the layout is their tile's
    T = clf.temperature
    said, asked = clf(dihedral_batch(fk['img'], views)) / T, asked / T
    far = F.kl_div(said.log_softmax(1), asked.log_softmax(1), reduction='none', log_target=True).sum(1)
    t['kl'] = ((far + .1 * (said - asked).square().mean(1)) * own).sum() / own.sum().clamp_min(1)
    if adversarial:
        fk['feats'] = st.P.features(light(fk['img'], cfg.seed, 'light-fake', idx))
        t['g_proj'] = g_hinge(st.P.logits(fk['feats'], fk.get('c', c)))
    phase = ts._Phase(st, 'G', 'E')
    loss, sizes = ts.gradient_norm_weighted(st, cfg, t, fk)
    if 'E' in st.opts:                                                 # what a style means stays what it was
        with torch.no_grad(): w, _ = before.encode(x)
        t['w'] = (fk['w'][:, 0] - w[:, 0]).abs().mean()
        loss = loss + 2 * t['w']
    phase.add(loss)
    ts.update_gradient_norms(st, sizes)
    phase.descend(cfg.e_clip)
    if adversarial:
        st.P.iterate()
        phase = ts._Phase(st, 'P')
        fk['feats'] = [v.detach() for v in fk['feats']]
        d, _, _ = ts.discriminator_terms(st, cfg, x, c, fk, idx)
        phase.add(sum(d.values()))
        phase.descend()
        t |= d
    st.nimg += len(x)
    ts.update_ema(st, cfg)
    return fk['img'].detach(), own > 0, {k: v.detach() for k, v in t.items()}

def classifier_step(clf, first, opt, x, y, drawn, same, weight):
    "What it says of a tile it says of its picture, and of what is passed on; and stays the classifier that it was."
    other = passed_on(torch.where(same.view(-1, 1, 1, 1), drawn, x))
    with torch.no_grad(): was = first(x).softmax(1)
    logits = clf(torch.cat([x, other]))
    a, b = (logits / clf.temperature).log_softmax(1).chunk(2)
    mean = torch.stack([a, b]).logsumexp(0) - math.log(2)
    apart = sum(F.kl_div(mean, v, log_target=True, reduction='batchmean') for v in (a, b)) / 2
    right = F.cross_entropy(logits, y.repeat(2), label_smoothing=.1)
    stays = -(was.repeat(2, 1) * logits.log_softmax(1)).sum(1).mean()
    loss = .25 * right + .75 * stays + weight * apart
    opt.zero_grad(); loss.backward(); opt.step()
    return dict(right=right.detach(), apart=apart.detach())

@torch.no_grad()
def look(st, clf, other, dist, x, y):
    "Figures of the averages on held-out tiles."
    E, G, out = st.ema['E'], st.ema['G'], {}
    r = torch.cat([G.synthesis(*E.encode(b), noise_mode='none').clamp(-1, 1) for b in x.split(100)])
    r = ((r + 1) * 127.5).round() / 127.5 - 1
    for name, c in (('', clf), ('64_', other)):
        if c is None: continue
        p, q = (torch.cat([calibrated(c(b), c.temperature) for b in v.split(100)]) for v in (x, r))
        ok = (p - q).abs().amax(1) <= .1
        out |= {name + 'within': ok.float().mean().item(),
            name + 'same': (p.argmax(1) == q.argmax(1)).float().mean().item(),
            name + 'accuracy': (p.argmax(1) == y).float().mean().item(),
            name + 'classes': [round(ok[y == k].float().mean().item(), 3) for k in range(5)]}
        if not name: out['maxp'] = p.amax(1).mean().item()
    return out | dict(held_lpips=torch.cat([dist(a, b) for a, b in zip(x.split(100), r.split(100))]).mean().item(),
        held_l1=(x - r).abs().mean().item())

def saved(path, net, meta=None):
    save_tensors(path, {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()},
        meta if meta is not None else net.init)


def keep(a, st, clf):
    "Write generator, encoder and classifier."
    saved(a.out/'generator.safetensors', st.ema['G']); saved(a.out/'encoder.safetensors', st.ema['E'])
    path = Path(a.model)/'classifier.safetensors'
    weights = load_tensors(path) | clf.model.state_dict()
    save_tensors(a.out/'classifier.safetensors',
        {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}, load_meta(path))

def together(a, log, tiles, held):
    "The first part; gives the encoder and the classifier that come out of it."
    (t, y), (vt, vy) = tiles, held
    st, cfg, clf = started(a, int(y.max()) + 1)
    dist = perceptual(cfg.perceptual).to(a.device)
    other = Classifier.load(a.other).frozen().to(a.device) if a.other else None
    first, mean = (Classifier.load(Path(a.model)/'classifier.safetensors').frozen().to(a.device) for _ in range(2))
    before = copy.deepcopy(st.ema['E'])
    clf.model.requires_grad_(True); clf.eval()
    opt = torch.optim.AdamW(clf.model.parameters(), a.c_lr, betas=(.9, .99), weight_decay=.01, fused=True)
    moments = torch.cat([moments_of_stain(unit(b)) for b in t.split(256)])
    pick, begin, step, notes, vx = Batch(y, a.batch), time.time(), 0, {}, unit(vt)
    log(dict(step=0, **look(st, mean, other, dist, vx, vy)))
    begin = time.time()
    while (done := progress(begin, a.until)) < 1:
        for k in st.opts: st.pace(k, min(1, (step + 1) / 200) * falling(done))
        for g in opt.param_groups: g['lr'] = a.c_lr * min(1, (step + 1) / 100) * falling(done)
        i = pick()
        x = turned(varied(unit(t[i]), moments))
        adversarial = a.adv > 0 and done > .03
        now = replace(cfg, proj_weight=a.adv * min(max((done - .06) / .06, 0), 1))
        drawn, same, terms = generator_step(st, now, mean, before, dist, x, adversarial)
        terms |= classifier_step(clf, first, opt, x, y[i], drawn, same, a.stability)
        with torch.no_grad(): moved(mean.model, clf.model, min(.998, 1 - 1 / (step + 2)))
        for k, v in terms.items(): notes.setdefault(k, []).append(v)
        step += 1
        if step % a.every == 0:
            means = {k: torch.stack(v).mean().item() for k, v in notes.items()}
            log(dict(step=step, img_s=step * a.batch / (time.time() - begin)) | means
                | look(st, mean, other, dist, vx, vy))
            notes = {}
    log(dict(step=step, end=True, **look(st, mean, other, dist, vx, vy)))
    keep(a, st, mean)
    return st.ema['E'], mean

@torch.no_grad()
def codes(E, clf, t):
    "Style, layout and class vector of tiles."
    out = []
    for b in t.split(256):
        x = unit(b)
        w, feat = E.encode(x)
        out.append((w[:, 0].half(), feat.half(), calibrated(clf(x), clf.temperature)))
    return [torch.cat(v) for v in zip(*out)]

def learn_prior(a, log, E, clf, tiles, held):
    "The second part: the prior on codes of all tiles in eight orientations."
    (t, y), (vt, vy) = tiles, held
    w, feat, c = (torch.stack(v) for v in zip(*(codes(E, clf, dihedral_batch(t, torch.full((len(t),), k,
        device=t.device))) for k in range(8))))
    of_held = codes(E, clf, vt)
    net, avg = (load_network(Prior, Path(a.model)/'prior.safetensors').to(a.device).float() for _ in range(2))
    net.requires_grad_(True); avg.requires_grad_(False)
    opt = torch.optim.Adam(net.parameters(), a.f_lr, betas=(.9, .99), fused=True)
    def terms(net, w, feat, c, seed, idx):
        with torch.autocast(a.device, torch.bfloat16): return prior_terms(net, w.float(), feat.float(), c, seed, idx)
    @torch.no_grad()
    def error(): return {k: v.item() for k, v in terms(avg, *of_held, 1, range(len(vy))).items()}
    log(dict(prior=0, **error()))
    pick, begin, step, notes, n = Batch(y, a.prior_batch), time.time(), 0, [], a.prior_batch
    while (done := progress(begin, a.end)) < 1:
        for g in opt.param_groups: g['lr'] = a.f_lr * min(1, (step + 1) / 200) * falling(done, .5)
        i, k = pick(), torch.randint(8, (n,), device=y.device)
        t_ = terms(net, w[k, i], feat[k, i], c[k, i], 0, range(step * n, (step + 1) * n))
        opt.zero_grad(); sum(t_.values()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.)
        opt.step()
        with torch.no_grad(): moved(avg, net, min(.999, 1 - 1 / (step + 2)))
        notes.append(t_['flow'].detach()); step += 1
        if step % a.prior_every == 0:
            log(dict(prior=step * n, code_s=step * n / (time.time() - begin), train=torch.stack(notes).mean().item(),
                **error()))
            notes = []
            saved(a.out/'prior.safetensors', avg)
    log(dict(prior=step * n, end=True, **error()))
    saved(a.out/'prior.safetensors', avg)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('model', type=Path); p.add_argument('store'); p.add_argument('out', type=Path)
    for k, v in dict(seconds=350., first=.6, batch=256, prior_batch=512, every=200, prior_every=500, kl=3.,
            adv=.3, swap=.125, stability=30., lr=.0025, e_lr=.001, c_lr=3e-4, f_lr=1e-3, ema_kimg=20., fp16=0).items():
        p.add_argument(f'--{k}', type=type(v), default=v)
    p.add_argument('--bf16', action='store_true', help='on a CPU that multiplies it')
    p.add_argument('--other'); p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(0)
    file = open(a.out/'log.jsonl', 'a')
    def log(row):
        row = dict(t=round(time.time() - START, 1), **row)
        row = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        print(row, file=file, flush=True)
        print(row, flush=True)
    tiles, held = loaded(a.store, a.device)
    log(dict(tiles=len(tiles[1]), classes=torch.bincount(tiles[1]).tolist(), held=len(held[1])))
    a.end = START + a.seconds
    a.until = time.time() + a.first * max(a.end - time.time(), 0)
    with reduced(a.bf16): E, clf = together(a, log, tiles, held)
    if a.first < 1: learn_prior(a, log, E, clf, tiles, held)


if __name__ == '__main__': main()
