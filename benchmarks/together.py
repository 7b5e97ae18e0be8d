"""Generator and explained classifier trained on together, and then the prior: what the classifier says of a tile is to
hold for its reconstruction. The encoder stays, so the codes and the prior on them stay true.

    python benchmarks/together.py MODEL STORE OUT [--seconds 350] [--first .6] [--bf16 on a CPU]

MODEL is a model folder with a prior and a plain classifier. The generator is to draw what both classifiers read in a
tile, next to the tile itself; the classifier is to say the same of both, in logits and not in probabilities, for tiles
that it learns from are sure. It ends about so many seconds after the start; of what reading the tiles leaves of them, a
share is the first part's, with 1 there is no second. Rates fall towards the end of each. OUT gets the networks in
float16 and a log with figures of held-out tiles: `within`, the share of which no probability differs by more than a
tenth between tile and reconstruction; `64_` of a classifier that takes no part (--other FILE)."""
import argparse, copy, json, math, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F

from histoxplaining.augmentation import dihedral_batch
from histoxplaining.checkpoints import load_model, load_network
from histoxplaining.classifier import Classifier, _apart, _blurred, calibrated
from histoxplaining.features import perceptual
from histoxplaining.files import load_meta, load_tensors, save_tensors
from histoxplaining.images import moments_of_stain, restain, stain_jitter, zoom
from histoxplaining.layers import reduced
from histoxplaining.prior import Prior, prior_terms
from histoxplaining.tiles import TileStore

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


class Reader:
    "A classifier with what it sees on its way: feature maps of unit second moment."
    def __init__(self, clf, soft, unit=1.):
        self.clf, self.soft, self.unit, self.maps = clf, soft, unit, []
        for b in clf.model.blocks[1:]: b.register_forward_hook(lambda m, i, out: self.maps.append(out))

    def __call__(self, x):
        self.maps = []
        logits, maps = self.clf(x), self.maps
        return logits, [v / (v.square().mean(1, keepdim=True) + 1e-6).sqrt() for v in maps]

    def terms(self, x, drawn):
        "How far apart what it says of tiles and of pictures is, and what it sees in them."
        with torch.no_grad(): said, seen = self(x)
        says, sees = self(drawn)
        far = 8 * _apart(says / self.unit, said / self.unit, self.soft / self.unit)
        return far, sum((u - v).square().mean() for u, v in zip(sees, seen)) / len(seen)


class Game:
    "The networks of the first part: those that learn, their averages, and those that do not."
    def __init__(self, a):
        self.G, self.E, _, _ = load_model(a.model)
        read = lambda name: Classifier.load(Path(a.model)/f'{name}.safetensors').frozen().to(a.device)
        self.clf, self.mean, self.first = (read('classifier') for _ in range(3))
        self.G.to(a.device), self.E.to(a.device)
        self.was, self.avg = (copy.deepcopy(self.G).requires_grad_(False) for _ in range(2))
        self.G.synthesis.requires_grad_(True); self.clf.model.requires_grad_(True); self.clf.eval()
        self.dist = perceptual('lpips').to(a.device)
        plain = read('classifier_plain')
        self.readers = Reader(self.mean, 1.5, self.clf.temperature), Reader(plain, 5., 3 * plain.temperature)
        self.opts = (torch.optim.Adam(self.G.synthesis.parameters(), a.lr, betas=(0., .99)),
            torch.optim.AdamW(self.clf.model.parameters(), a.c_lr, betas=(.9, .99), weight_decay=.01))

    def pace(self, step, done):
        for opt in self.opts:
            for g in opt.param_groups:
                g['lr'] = g.setdefault('whole', g['lr']) * min(1, (step + 1) / 100) * falling(done)


def generator_step(game, a, x, step):
    """Pictures are to be the tiles, to the eye and to one of the classifiers in turn; and where the style is another
    tile's, what they were before, for edits. Gives the pictures of own style and how many there are of others."""
    with torch.no_grad():
        w, feat = game.E.encode(x)
        m = int(a.swap * len(x))
        w = torch.cat([w.roll(1, 0)[:m], w[m:]])
        before = game.was.synthesis(w[:m], feat[:m], noise_mode='none')
    img = game.G.synthesis(w, feat, noise_mode='none')
    x, own, other = x[m:], img[m:], img[:m]
    t = dict(l1=(x - own).abs().mean(), lpips=game.dist(x, own).mean())
    if m: t['kept'] = (other - before).abs().mean() + game.dist(other.clamp(-1, 1), before.clamp(-1, 1)).mean()
    t['opinion'], t['features'] = game.readers[step % 5 in (1, 3)].terms(x, own)
    loss = sum(getattr(a, k, 1.) * v for k, v in t.items())
    game.opts[0].zero_grad(); loss.backward()
    torch.nn.utils.clip_grad_norm_(game.G.synthesis.parameters(), 1.)
    game.opts[0].step()
    return own.detach().clamp(-1, 1), m, {k: v.detach() for k, v in t.items()}

def classifier_step(game, a, x, y, drawn):
    "What it says of a tile it says of its picture, and of what is passed on; and stays the classifier that it was."
    with torch.no_grad(): was = game.first(x).softmax(1)
    logits = game.clf(torch.cat([x, passed_on(drawn)]))
    apart = _apart(*logits.chunk(2), 1.5)
    right = F.cross_entropy(logits, y.repeat(2), label_smoothing=.1)
    stays = -(was.repeat(2, 1) * logits.log_softmax(1)).sum(1).mean()
    loss = .25 * right + .75 * stays + a.stability * apart
    game.opts[1].zero_grad(); loss.backward(); game.opts[1].step()
    return dict(right=right.detach(), apart=apart.detach())

@torch.no_grad()
def look(game, other, x, y):
    "Figures of the averages on held-out tiles."
    E, G, clf, dist, out = game.E, game.avg, game.mean, game.dist, {}
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


def keep(a, game):
    "Write generator and classifier, this with the temperature of before."
    saved(a.out/'generator.safetensors', game.avg)
    path = Path(a.model)/'classifier.safetensors'
    weights = load_tensors(path) | game.mean.model.state_dict()
    save_tensors(a.out/'classifier.safetensors',
        {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}, load_meta(path))

def together(a, log, tiles, held):
    "The first part; gives the encoder and the classifier that comes out of it."
    (t, y), (vt, vy) = tiles, held
    game = Game(a)
    other = Classifier.load(a.other).frozen().to(a.device) if a.other else None
    moments = torch.cat([moments_of_stain(unit(b)) for b in t.split(256)])
    pick, step, notes, vx = Batch(y, a.batch), 0, {}, unit(vt)
    log(dict(step=0, **look(game, other, vx, vy)))
    begin = time.time()
    while (done := progress(begin, a.until)) < 1:
        game.pace(step, done)
        i = pick()
        x = turned(varied(unit(t[i]), moments))
        drawn, m, terms = generator_step(game, a, x, step)
        terms |= classifier_step(game, a, x[m:], y[i[m:]], drawn)
        beta = min(.998, 1 - 1 / (step + 2))
        with torch.no_grad(): moved(game.avg, game.G, beta); moved(game.mean.model, game.clf.model, beta)
        for k, v in terms.items(): notes.setdefault(k, []).append(v)
        step += 1
        if step % a.every == 0:
            means = {k: torch.stack(v).mean().item() for k, v in notes.items()}
            log(dict(step=step, img_s=step * a.batch / (time.time() - begin)) | means | look(game, other, vx, vy))
            notes = {}
            keep(a, game)
    log(dict(step=step, end=True, **look(game, other, vx, vy)))
    keep(a, game)
    return game.E, game.mean

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
    for k, v in dict(seconds=350., first=.6, batch=256, prior_batch=512, every=200, prior_every=500, opinion=.1,
            features=.3, kept=.5, swap=.25, stability=80., lr=.0015, c_lr=3e-4, f_lr=1e-3).items():
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
