"""A translator that does in one step what a model's prior does in fifty passes: `flow` (room `methods`) answers tiles,
and a change of low rank of the prior's own weights (`FlowTranslator`) learns to go where it went.

    python benchmarks/distil.py MODEL STORE OUT [--pairs 900] [--codes 600] [--seconds 1800]

So many seconds of answers of the flow to training tiles in four orientations, every class and every depth; so many in
which only the steps are learnt; and so many of the pictures too: LPIPS to the flow's picture, the classifier's answer,
and a discriminator that sees codes through the prior's own features, with noise on them (latent adversarial
distillation: Sauer et al. 2024). A second process of the same (--rank 1 --world 2) shares the work. OUT gets answers,
the translator in float16 and a log with figures of held-out tiles: `missed`, the share of the squared step; `lpips` to
the flow's picture; `turned`, the share with p above .9, and `turned_flow`, each for closeness 1, .5 and 0."""
import argparse, json, time
from pathlib import Path
import numpy as np, torch, torch.distributed as dist, torch.nn as nn, torch.nn.functional as F

from histoxplaining.augmentation import dihedral_batch
from histoxplaining.backbones import fold_norms
from histoxplaining.checkpoints import load_model, load_network
from histoxplaining.classifier import calibrated, log_odds
from histoxplaining.features import perceptual
from histoxplaining.files import load_tensors, save_tensors, stream
from histoxplaining.layers import normalize_2nd_moment, reduced
from histoxplaining.methods import DEPTHS, GUIDANCE, STEPS
from histoxplaining.prior import FlowTranslator, Prior
from histoxplaining.translator import NOISE, Asked
from together import codes, falling, loaded, moved, saved


class Model:
    "Networks that do not learn."
    def __init__(self, a):
        self.G, self.E, clf, _ = load_model(a.model)
        self.G.to(a.device).eval().requires_grad_(False), self.E.to(a.device).eval()
        self.prior = load_network(Prior, Path(a.model)/'prior.safetensors').to(a.device).eval().requires_grad_(False)
        self.clf = clf.frozen().to(a.device)
        size = self.G.size
        example = torch.zeros(1, 3, size, size, device=a.device)
        self.clf.model = fold_norms(self.clf.model, example).requires_grad_(False)
        self.eye = torch.eye(self.prior.n_classes, device=a.device)
        # other noise for the flow is a mixture of these, with the numbers that tell one answer from another
        self.fields = torch.randn(NOISE, *self.prior.feat_shape, generator=stream(0, 'answers')).to(a.device)
        self.fields /= NOISE**.5

    def render(self, w, feat): return self.G.synthesis(w, feat, noise_mode='none').clamp(-1, 1)

    def p(self, img, target):
        "Probability of the wanted classes for pictures as they are shown."
        shown = ((img + 1) * 127.5).round() / 127.5 - 1
        return calibrated(self.clf(shown), self.clf.temperature).gather(1, target[:, None])[:, 0]


@torch.no_grad()
def answered(model, w, feat, source, target, noise):
    "What the flow makes of codes, at three depths: steps in the layout `[N, 3, ...]` and p `[N, 3]`."
    again = torch.einsum('nk,kcij->ncij', noise, model.fields) if noise.any() else None
    out = model.prior.redrawn(w, feat, model.eye[source], model.eye[target], DEPTHS, STEPS, False, GUIDANCE, again)
    p = [model.p(model.render(w, f), target) for _, f in out]
    return torch.stack([f - feat for _, f in out], 1), torch.stack(p, 1)

def answers(a, model, codes_of, seconds, seed, most=None):
    "Answers to tiles of all classes for so long, as one dict of tensors."
    (w, feat, said), rows, begin = codes_of, [], time.time()
    told, rng, n = said.argmax(1), np.random.default_rng(seed), len(model.eye)
    while time.time() - begin < seconds and len(rows) * a.batch < (most or 1e9):
        source = int(rng.integers(n))
        i = (told == source).nonzero()[:, 0].cpu().numpy()
        i = torch.from_numpy(rng.choice(i, a.batch)).to(told.device)
        target = torch.full_like(i, (source + 1 + int(rng.integers(n - 1))) % n)
        noise = torch.from_numpy(rng.standard_normal((a.batch, NOISE))).to(w.device).float()
        if most or rng.random() > .3: noise = noise * 0                 # mostly the one answer
        step, p = answered(model, w[i].float(), feat[i].float(), told[i], target, noise)
        rows.append(dict(w=w[i], feat=feat[i], target=target, noise=noise, step=step.half(), p=p))
    return {k: torch.cat([r[k] for r in rows]) for k in rows[0]}


def kept(path, make):
    "Answers that lie there from before, or new ones, which then do."
    if not path.exists(): save_tensors(path, {k: v.cpu() for k, v in make().items()})
    return load_tensors(path)


class Heads(nn.Module):
    "What tells a network's codes from the flow's, in features of the prior."
    def __init__(self, prior):
        super().__init__()
        self.prior, self.seen = [prior], []
        narrow, wide = prior.init['width'], prior.init['wide']
        self.heads = nn.ModuleList(nn.Sequential(nn.GroupNorm(8, c), nn.Conv2d(c, 64, 3, padding=1), nn.SiLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 1, 1)) for c in (narrow, wide, narrow))
        for m in (prior.early[-1], prior.middle[-1], prior.late[-1]):
            m.register_forward_hook(lambda m, i, out: self.seen.append(out))

    def features(self, feat, t, c, noise):
        F0 = self.prior[0]
        self.seen, x = [], torch.lerp(noise, (feat - F0.feat_mean) / F0.feat_sd, t[:, None, None, None])
        F0.layout_velocity(x, t, feat.new_zeros(len(x), F0.styles), c)
        return self.seen[:3]

    def forward(self, seen): return torch.cat([h(f.float()).flatten(1) for h, f in zip(self.heads, seen)], 1)


class Batch:
    "Random answers at random depths, those that did not convince less often; closeness and question that fit them."
    def __init__(self, known, seed):
        self.known, self.rng = known, np.random.default_rng(seed)
        self.ends = torch.where(known['p'] >= .5, 1., .3).flatten().double().cumsum(0).cpu().numpy()

    def __call__(self, n):
        k, u = (torch.from_numpy(v).to(self.known['p'].device) for v in (np.searchsorted(self.ends,
            self.rng.random(n) * self.ends[-1]), self.rng.random((2, n))))
        i, depth, v = k // 3, k % 3, self.known
        typical = (depth == 2) & (u[0] < .5)
        asked = Asked(v['target'][i], typical, torch.where(typical, u[1], 1 - depth / 2).float(), v['noise'][i])
        return v['w'][i].float(), v['feat'][i].float(), asked, v['step'][i, depth].float(), v['p'][i, depth]


def together(params, grads):
    "Gradients, averaged over processes."
    grads = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads)]
    if dist.is_initialized():
        v = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(v)
        grads = [g.view_as(p) for g, p in zip((v / dist.get_world_size()).split([p.numel() for p in params]), params)]
    for p, g in zip(params, grads): p.grad = g.clone()

class Student:
    "The translator, its average, and what judges it."
    def __init__(self, a, model, known):
        F0, G = model.prior, model.G
        self.T, self.avg = (FlowTranslator(F0, G.w_dim, a.low_rank).to(a.device) for _ in range(2))
        if a.start: self.T.load_state_dict({k: v.float() for k, v in load_tensors(a.start).items()})
        self.avg.requires_grad_(False).load_state_dict(self.T.state_dict())
        self.heads = Heads(F0).to(a.device)
        self.params = [list(self.T.parameters()), list(self.heads.parameters())]
        self.opts = [torch.optim.Adam(p, lr, betas=(momentum, .99)) for p, lr, momentum in
            zip(self.params, (a.lr, 1e-3), (.5, 0.))]
        self.dist = perceptual('lpips').to(a.device)
        if a.world > 1:
            for net in (self.T, self.avg, self.heads):
                for v in net.state_dict().values(): dist.broadcast(v, 0)
        torch.manual_seed(a.rank + 1)

    def step(self, a, model, batch, whole):
        "One step, of the steps alone or of the whole: the terms."
        w, feat, asked, step, p = batch
        made = normalize_2nd_moment(feat + self.T(w, feat, asked)[1])
        wanted, some = feat + step, slice(0, len(w) // 2)
        t = dict(far=(made - wanted).square().mean() / step.square().mean())
        if whole:
            x = model.render(w[some], made[some])
            with torch.no_grad(): y = model.render(w[some], wanted[some])
            t['lpips'] = self.dist(x, y).mean()
            odds = log_odds(model.clf(x), asked.target[some], model.clf.temperature)
            t['answer'] = F.softplus(p[some].clamp(.01, .99).logit() - odds).mean()
            c = model.eye[asked.target], torch.randn_like(made)
            time_ = torch.sigmoid(torch.randn(len(w), device=w.device) + .8)
            fake = self.heads.features(made, time_, *c)
            t['realism'] = -self.heads(fake).mean()
        together(self.params[0], torch.autograd.grad(sum(getattr(a, k) * v for k, v in t.items()), self.params[0]))
        nn.utils.clip_grad_norm_(self.params[0], 1.)
        self.opts[0].step()
        if whole:
            with torch.no_grad(): real = self.heads.features(wanted, time_, *c)
            r, f = self.heads(real), self.heads([v.detach() for v in fake])
            loss = F.relu(1 - r).mean() + F.relu(1 + f).mean()
            together(self.params[1], torch.autograd.grad(loss, self.params[1]))
            self.opts[1].step()
            t |= dict(sign_flow=r.sign().mean(), sign_made=f.sign().mean())
        return {k: v.detach() for k, v in t.items()}


@torch.no_grad()
def look(a, model, student, held):
    "Figures of the average for held-out tiles, at the three depths."
    out = {k: [] for k in ('missed', 'lpips', 'turned', 'turned_flow')}
    for depth in range(3):
        rows = []
        for i in range(0, len(held['w']), a.batch):
            w, feat, target, noise, step, p = (held[k][i:i + a.batch].float() if held[k].is_floating_point() else
                held[k][i:i + a.batch] for k in ('w', 'feat', 'target', 'noise', 'step', 'p'))
            asked = Asked(target, torch.zeros_like(target).bool(), torch.full_like(w[:, 0], 1 - depth / 2), noise)
            made, wanted = normalize_2nd_moment(feat + student.avg(w, feat, asked)[1]), feat + step[:, depth]
            x, y = model.render(w, made), model.render(w, wanted)
            rows.append(torch.stack([(made - wanted).square().sum((1, 2, 3)), step[:, depth].square().sum((1, 2, 3)),
                student.dist(x, y).flatten(), (model.p(x, target) >= .9).float(), (p[:, depth] >= .9).float()]))
        m = torch.cat(rows, 1).mean(1).tolist()
        for k, v in zip(out, (m[0] / m[1], *m[2:])): out[k].append(round(v, 4))
    return out

def learn(a, log, model, known, held):
    "The translator, from answers."
    student, pick, step, notes, begin = Student(a, model, known), Batch(known, a.rank), 0, {}, time.time()
    log(dict(step=0, weights=sum(p.numel() for p in student.params[0]), **look(a, model, student, held)))
    while True:
        at = torch.tensor(time.time() - begin)
        if dist.is_initialized(): dist.broadcast(at, 0)
        done, whole = at.item() / (a.codes + a.seconds), at.item() >= a.codes
        if done >= 1: break
        for g in student.opts[0].param_groups: g['lr'] = a.lr * min(1, (step + 1) / 100) * falling(done, .5)
        terms = student.step(a, model, pick(a.batch if whole else 4 * a.batch), whole)
        with torch.no_grad(): moved(student.avg, student.T, min(.998, 1 - 1 / (step + 2)))
        for k, v in terms.items(): notes.setdefault(k, []).append(v)
        step += 1
        if step % a.every == 0:
            terms = {k: round(torch.stack(v).mean().item(), 4) for k, v in notes.items()}
            log(dict(step=step, whole=whole, terms=terms, **look(a, model, student, held)))
            notes = {}
            if not a.rank: saved(a.out/'translator.safetensors', student.avg)
    log(dict(step=step, end=True, **look(a, model, student, held)))
    if not a.rank: saved(a.out/'translator.safetensors', student.avg)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('model', type=Path); p.add_argument('store'); p.add_argument('out', type=Path)
    for k, v in dict(pairs=900., codes=600., seconds=1800., batch=16, held=320, low_rank=16, every=250,
            lr=.0015, far=.3, lpips=1., answer=.2, realism=.7, rank=0, world=1).items():
        p.add_argument(f'--{k}', type=type(v), default=v)
    p.add_argument('--start', help='a translator of the same shape to go on from')
    p.add_argument('--bf16', action='store_true', help='on a CPU that multiplies it')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(0)
    meet = dict(init_method=f'file://{a.out.resolve()}/meet', rank=a.rank, world_size=a.world)
    if a.world > 1: dist.init_process_group('gloo', **meet)
    begin = time.time()
    def log(row):
        row = dict(t=round(time.time() - begin, 1), **row)
        row = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        if a.rank: return
        with open(a.out/'log.jsonl', 'a') as f: print(row, file=f)
        print(row, flush=True)
    model = Model(a)
    with reduced(a.bf16):
        def of_tiles():
            t = loaded(a.store, a.device)[0][0]
            turned = [dihedral_batch(t, torch.full((len(t),), k, device=t.device)) for k in (0, 1, 4, 6)]
            sides = [codes(model.E, model.clf, v) for v in turned]
            return answers(a, model, [torch.cat(v) for v in zip(*sides)], a.pairs, a.rank)
        def of_held():
            return answers(a, model, codes(model.E, model.clf, loaded(a.store, a.device)[1][0]), 1e9, 100, a.held)
        known, held = (kept(a.out/f'{name}_{a.rank}.safetensors', make) for name, make in (('answers', of_tiles),
            ('held', of_held)))
        known, held = ({k: v.to(a.device) for k, v in d.items()} for d in (known, held))
        log(dict(answers=len(known['w']), turned_flow=(known['p'] >= .9).float().mean(0).tolist()))
        learn(a, log, model, known, held)


if __name__ == '__main__': main()
