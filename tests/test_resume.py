"""Training that is interrupted in any way goes on as if nothing had happened, or says why it cannot."""
import json, os, random, resource, signal, subprocess, sys, time
import pytest, torch
from histoxplaining import training, training_step as steps
from histoxplaining.checkpoints import RunDir, images_of
from histoxplaining.layers import multiplies_bfloat16
from histoxplaining.training import TrainConfig, train

SMALL = dict(batch=8, channel_base=256, channel_max=16, proj_res=32, log_kimg=.016, aug_pipe='bgcfnc', ada_target=-1.,
    ada_kimg=.4, bf16=multiplies_bfloat16())    # measured, it could be one thing now and another later
ALL = SMALL | dict(arch='StyleEx', disc='both', ae_kimg=.08, kimg=.32, snap_kimg=.048, pl_weight=2., metrics_kimg=.16,
    metrics_n=128)
MODES = {'StyleEx': ALL, 'stylegan2': SMALL | dict(arch='stylegan2', kimg=.32, snap_kimg=.048),
    'autoencoder': SMALL | dict(arch='autoencoder', kimg=.32, snap_kimg=.048, aug=None)}

# Trains in a child that can be killed, again and again, without importing torch again: argv is data, folder,
# classifier, settings, and when each child is killed: so many seconds after so many images were logged
SCRIPT = '''
import json, os, signal, sys, time, torch
torch.set_num_threads(1)
from histoxplaining.checkpoints import RunDir
from histoxplaining.layers import multiplies_bfloat16
from histoxplaining.training import TrainConfig, train
data, out, clf, cfg, whens = sys.argv[1:]
seen = lambda: max([r['nimg'] for r in RunDir(out).read_log()], default=0)
cfg = TrainConfig(data=data, **json.loads(cfg))
kills = 0
for when in [*json.loads(whens), None]:
    pid = os.fork()
    if not pid:
        try: train(cfg, out, None if cfg.arch == 'stylegan2' else clf, ckpt=out if RunDir(out).states() else None)
        except BaseException as e: print(repr(e), flush=True); os._exit(1)
        os._exit(0)
    if when is not None:
        while seen() < when[0] and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT): time.sleep(.01)
        time.sleep(when[1])
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    kills += code == -signal.SIGKILL
    if code >= 0: break
print('killed', kills, 'times')
sys.exit(code)
'''


def start(tiny, out, cfg, whens=()):
    return subprocess.Popen([sys.executable, '-c', SCRIPT, tiny/'tiles.lmdb', out, tiny/'classifier.safetensors',
        json.dumps(cfg), json.dumps(whens)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(p):
    out, _ = p.communicate(timeout=500)
    assert p.returncode == 0, out
    return out


def flat(state, path=''):
    for k, v in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(v, (dict, list)): yield from flat(v, f'{path}/{k}')
        elif k != 'seconds': yield f'{path}/{k}', v


def assert_same(a, b):
    a, b = dict(flat(a)), dict(flat(b))
    assert a.keys() == b.keys()
    different = [k for k in a if not (torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k])]
    assert not different, different[:5]


@pytest.fixture(scope='module')
def whole(tiny, tmp_path_factory):
    "Uninterrupted runs, made once per mode."
    done = {}
    def of(mode):
        if mode not in done:
            done[mode] = tmp_path_factory.mktemp('whole')/mode
            finish(start(tiny, done[mode], MODES[mode]))
        return RunDir(done[mode])
    return of


@pytest.mark.parametrize('mode,times', [('StyleEx', 10), ('stylegan2', 2), ('autoencoder', 2)])
def test_killed_run_resumes_to_the_same_bits(tiny, whole, tmp_path, mode, times):
    full = whole(mode)
    rng = random.Random(0)
    # some before the first checkpoint, some while one is written
    whens = [(n, rng.uniform(0, .3)) for n in sorted(rng.uniform(0, 290) for _ in range(times))]
    said = finish(start(tiny, tmp_path/'cut', MODES[mode], whens))
    cut = RunDir(tmp_path/'cut')
    assert_same(full.latest(), cut.latest())
    assert mode == 'autoencoder' or full.latest()['ada']['p'] > .1                            # augmentation was at work
    def rows(run):
        return [{k: v for k, v in r.items() if k not in ('img_s', 'seconds')} for r in run.read_log()
            if r.get('snapshot')]
    assert rows(full) == rows(cut)                                                            # the log tells one story
    assert full.best == cut.best and f'killed {times} times' in said


@pytest.mark.parametrize('can', [True, False])
def test_a_run_that_is_continued_keeps_its_precision(monkeypatch, can):
    "Whether bfloat16 pays is measured at the start, beside whatever else the machine does then, and not again."
    monkeypatch.setattr(training, 'multiplies_bfloat16', lambda: can)
    was = dict(arch='StyleEx', device='cpu', bf16=True)
    assert training._shaped(TrainConfig(device='cpu'), was).bf16 == (True if can else None)
    assert training._shaped(TrainConfig(device='cpu', bf16=False), was).bf16 is False
    assert training._shaped(TrainConfig(device='cpu'), was | dict(bf16=False)).bf16 is False
    assert training._shaped(TrainConfig(device='cuda'), was).bf16 is None


def test_sigterm_saves_and_ends_well(tiny, whole, tmp_path):
    p = start(tiny, tmp_path/'run', MODES['stylegan2'] | dict(snap_kimg=10))
    run, deadline = RunDir(tmp_path/'run'), time.time() + 200
    while not (rows := run.read_log()) or rows[-1]['nimg'] < 64:
        assert p.poll() is None and time.time() < deadline; time.sleep(.02)
    child = int(subprocess.run(['pgrep', '-P', str(p.pid)], capture_output=True, text=True).stdout.split()[0])
    os.kill(child, signal.SIGTERM)
    assert 'stopped (SIGTERM)' in finish(p)
    assert run.read_log()[-1]['stopped'] == 'SIGTERM' and 64 <= images_of(run.states()[-1]) < 320 and run.model.is_dir()
    finish(start(tiny, run.path, MODES['stylegan2'] | dict(snap_kimg=10)))
    a, b = whole('stylegan2').latest(), run.latest()
    assert_same({k: v for k, v in a.items() if k != 'config'}, {k: v for k, v in b.items() if k != 'config'})


def test_a_damaged_newest_checkpoint_is_skipped(tiny, whole, tmp_path):
    run = RunDir(tmp_path/'run')
    # as many threads as in the run that it is compared with
    finish(start(tiny, run.path, MODES['stylegan2']))
    newest = run.states()[-1]
    newest.write_bytes(newest.read_bytes()[:-5000] + bytes(5000))
    said = finish(start(tiny, run.path, MODES['stylegan2']))
    assert f'skipped a damaged checkpoint: {newest}' in said and images_of(newest) == 320
    a, b = whole('stylegan2').latest(), run.latest()
    assert_same(a['nets'], b['nets'])


def test_a_full_disk_stops_training_and_keeps_the_last_checkpoint(tiny, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    def fills_up(row):
        # no file may grow beyond 20 kB
        if row['nimg'] >= 96: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(ValueError, match='make room, then continue with --ckpt'):
            train(TrainConfig(data=str(tiny/'tiles.lmdb'), **MODES['stylegan2']), tmp_path/'run', quiet=True,
                callback=fills_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    run = RunDir(tmp_path/'run')
    assert run.latest()['nimg'] >= 48 and not list((run.path/'state').glob('*new*'))
    assert (run.model/'card.json').exists()
    train(TrainConfig(data=str(tiny/'tiles.lmdb'), **MODES['stylegan2']), run.path, ckpt=run.path, quiet=True)
    assert run.latest()['nimg'] == 320


TERMS = {'generator_terms': ('l1', 'coarse', 'perceptual', 'style', 'look', 'kl', 'prior', 'w', 'g_adv', 'g_proj'),
    'discriminator_terms': ('d_adv', 'd_proj'), 'path_length_term': ('path',), 'r1_penalty': ('r1',)}


def poison(monkeypatch, when):
    "Make terms not finite: `when(term, nimg)` says of which, when."
    seen = {}
    def wrap(name):
        real = getattr(steps, name)
        def fn(*args, **kw):
            out, nan = real(*args, **kw), float('nan')
            if name == 'generator_terms': seen['nimg'] = args[0].nimg
            if name in ('path_length_term', 'r1_penalty'):
                return out * nan if when(TERMS[name][0], seen['nimg']) else out
            for k in out[0]:
                if when(k, seen['nimg']): out[0][k] = out[0][k] * nan
            return out
        monkeypatch.setattr(steps, name, fn)
    for name in TERMS: wrap(name)


def test_a_term_that_is_not_finite_is_named_and_its_step_left_out(tiny, tmp_path, monkeypatch):
    pending, hit = {t for ts in TERMS.values() for t in ts}, {}
    # each term once, in a step of its own
    def when(term, nimg):
        if term not in pending or nimg in hit or nimg < 16: return False
        pending.remove(term)
        hit[nimg] = term
        return True
    poison(monkeypatch, when)
    cfg = TrainConfig(data=str(tiny/'tiles.lmdb'), **ALL |
        dict(ae_kimg=0., kimg=.16, metrics_kimg=0, snap_kimg=1, w_every=1, r1_every=1, pl_every=1, nan_budget=50))
    run = train(cfg, tmp_path/'run', tiny/'classifier.safetensors', quiet=True)
    bad = {r['nimg'] - 8: r for r in run.read_log() if 'not_finite' in r}
    assert not pending and {n: b['not_finite'] for n, b in bad.items()} == {n: [t] for n, t in hit.items()}
    assert {b['action'] for b in bad.values()} == {'skip'} and all(len(b['left_out']) == 1 for b in bad.values())
    state = run.latest()
    assert state['nimg'] == 160 and all(torch.isfinite(v).all() for k,
        v in flat({k: state[k] for k in ('nets', 'ema', 'norms', 'opts')}) if isinstance(v, torch.Tensor))


def test_lasting_trouble_is_met_by_going_back_and_then_by_a_diagnosis(tiny, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, lambda term, nimg: term == 'd_adv' and nimg >= 96)
    cfg = TrainConfig(data=str(tiny/'tiles.lmdb'), **SMALL |
        dict(arch='stylegan2', kimg=.32, snap_kimg=.048, nan_budget=2))
    with pytest.raises(ValueError, match=r'd_adv not finite after 112 images: .* 2 returns to an earlier state'):
        train(cfg, tmp_path/'run')
    assert capsys.readouterr().out.count('back to the newest checkpoint, at half the learning rate') == 2
    state = RunDir(tmp_path/'run').latest()
    assert state['nimg'] == 96 and all(torch.isfinite(v).all() for _,
        v in flat(state['nets']) if isinstance(v, torch.Tensor))


def test_memory_that_does_not_suffice_halves_the_batch_once(tiny, tmp_path, monkeypatch, capsys):
    real = steps.generator_terms
    def greedy(st, cfg, clf, dist, x, *args):
        if len(x) > 4 and st.nimg >= 16: raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')
        return real(st, cfg, clf, dist, x, *args)
    monkeypatch.setattr(steps, 'generator_terms', greedy)
    run = train(TrainConfig(data=str(tiny/'tiles.lmdb'), **SMALL | dict(arch='stylegan2', kimg=.032)), tmp_path/'run')
    assert 'not enough memory for 8 images at a time: going on with 4' in capsys.readouterr().out
    assert run.latest()['nimg'] == 32 and run.latest()['config']['batch_gpu'] == 4


def test_early_stopping(tiny, tmp_path, monkeypatch):
    from histoxplaining import training
    # worse every time
    monkeypatch.setattr(training.SampleMetrics, '__call__', lambda self, st, cfg, clf: {'score': float(st.nimg)})
    run = train(TrainConfig(data=str(tiny/'tiles.lmdb'),
        **SMALL | dict(arch='stylegan2', kimg=.32, snap_kimg=.032, metrics_kimg=.032, patience=2)), tmp_path/'run',
        quiet=True)
    assert run.best == {'nimg': 32,
        'score': 32.} and run.latest()['nimg'] == 96 and run.read_log()[-1]['stopped'].startswith('no better')
    assert [images_of(p) for p in run.states()] == [32, 64, 96]                               # the best one is kept


def test_a_run_is_not_overwritten(tiny, tmp_path):
    cfg = TrainConfig(data=str(tiny/'tiles.lmdb'), arch='stylegan2', kimg=.016, batch=8, channel_base=256,
        channel_max=16)
    train(cfg, tmp_path/'run', quiet=True)
    before = (tmp_path/'run'/'log.jsonl').read_bytes()
    with pytest.raises(ValueError, match='already holds a run'): train(cfg, tmp_path/'run', quiet=True)
    assert (tmp_path/'run'/'log.jsonl').read_bytes() == before


def test_continuing_with_another_batch_reaches_the_end(tiny, tmp_path):
    cfg = dict(data=str(tiny/'tiles.lmdb'), arch='stylegan2', channel_base=256, channel_max=16)
    train(TrainConfig(**cfg, kimg=.024, batch=8), tmp_path/'a', quiet=True)
    run = train(TrainConfig(**cfg, kimg=.05, batch=16), tmp_path/'b', ckpt=tmp_path/'a', quiet=True)
    # 24 + 2 x 16: the first step at or past the end
    assert run.latest()['nimg'] == 56
    with pytest.raises(ValueError, match='already at'):
        train(TrainConfig(**cfg, kimg=.05, batch=16), tmp_path/'c', ckpt=run.path, quiet=True)
    assert not (tmp_path/'c').exists()


def test_going_back_forgets_what_came_after(tiny, tmp_path):
    cfg = dict(data=str(tiny/'tiles.lmdb'), arch='stylegan2', batch=8, channel_base=256, channel_max=16, snap_kimg=.016)
    run = train(TrainConfig(**cfg, kimg=.048), tmp_path/'a', quiet=True)
    first, last = run.states()
    train(TrainConfig(**cfg, kimg=.04), run.path, ckpt=first, quiet=True)
    assert last not in run.states() and run.latest()['nimg'] == 40


def test_a_checkpoint_of_other_networks_is_refused_by_name(tiny, tmp_path):
    cfg = dict(data=str(tiny/'tiles.lmdb'), arch='stylegan2', kimg=.016, batch=8, channel_base=256)
    train(TrainConfig(**cfg, channel_max=16), tmp_path/'a', quiet=True)
    with pytest.raises(ValueError, match='nets.G of the checkpoint does not fit'):
        train(TrainConfig(**cfg, channel_max=8), tmp_path/'b', ckpt=tmp_path/'a', quiet=True)


def test_a_run_that_grew_from_a_model_goes_on_with_its_shape(tiny, tmp_path):
    small = TrainConfig(data=str(tiny/'tiles.lmdb'), arch='StyleEx', kimg=.064, batch=8, channel_base=128,
        channel_max=16, map_layers=1, feat_channels=4, perceptual='lite0', metrics_kimg=0)
    first = train(small, tmp_path/'first', tiny/'classifier.safetensors', quiet=True)
    again = dict(data=small.data, init=str(first.model), arch='StyleEx', batch=8, perceptual='lite0', metrics_kimg=0)
    run = train(TrainConfig(**again, kimg=.064), tmp_path/'run', tiny/'classifier.safetensors', quiet=True)
    # the same call, longer
    run = train(TrainConfig(**again, kimg=.128), tmp_path/'run', tiny/'classifier.safetensors', ckpt=run.path,
        quiet=True)
    assert run.latest()['nimg'] == 128 and run.latest()['config']['channel_base'] == 128
