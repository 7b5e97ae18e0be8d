"""A run killed with SIGKILL resumes to exactly the weights of one that was never interrupted."""
import signal, subprocess, sys, time
import pytest, torch
from histoxplaining.checkpoints import RunDir
from histoxplaining.training import TrainConfig, train

SCRIPT = '''
import sys, torch
torch.set_num_threads(1)
from histoxplaining.training import TrainConfig, train
data, out, clf, arch, disc, ckpt = sys.argv[1:]
cfg = TrainConfig(data=data, arch=arch, disc=disc or None, kimg=.32, batch=8, channel_base=256, channel_max=16, proj_res=32, ae_kimg=.16 if arch == 'StyleEx' else None, log_kimg=.016, snap_kimg=.048,
                  aug_pipe='bgcfnc', ada_target=-1., ada_kimg=.4)
train(cfg, out, None if arch == 'stylegan2' else clf, ckpt=ckpt or None)
'''


def start(*args): return subprocess.Popen([sys.executable, '-c', SCRIPT, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(p):
    out, _ = p.communicate(timeout=300)
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


@pytest.mark.parametrize('arch,disc', [('StyleEx', 'both'), ('stylegan2', ''), ('autoencoder', '')])
def test_killed_run_resumes_to_the_same_bits(tiny, tmp_path, arch, disc):
    data, clf = tiny/'tiles.lmdb', tiny/'classifier.safetensors'
    finish(start(data, tmp_path/'whole', clf, arch, disc, ''))
    p = start(data, tmp_path/'cut', clf, arch, disc, '')
    deadline = time.time() + 200
    while len(RunDir(tmp_path/'cut').states()) < 2 or RunDir(tmp_path/'cut').read_log()[-1]['nimg'] < 112:   # somewhere after a checkpoint
        assert p.poll() is None and time.time() < deadline, p.communicate()[0]
        time.sleep(.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert RunDir(tmp_path/'cut').latest()['nimg'] < 320
    finish(start(data, tmp_path/'cut', clf, arch, disc, tmp_path/'cut'))
    whole, cut = RunDir(tmp_path/'whole'), RunDir(tmp_path/'cut')
    assert_same(whole.latest(), cut.latest())
    assert arch == 'autoencoder' or whole.latest()['ada']['p'] > .1                        # augmentation was at work
    pick = lambda run: [{k: v for k, v in r.items() if k not in ('img_s', 'seconds')} for r in run.read_log()]
    snaps = lambda run: [r for r in pick(run) if r.get('snapshot')]
    assert snaps(whole) == snaps(cut)                                                     # the log tells one story


def test_a_run_is_not_overwritten(tiny, tmp_path):
    cfg = TrainConfig(data=str(tiny/'tiles.lmdb'), arch='stylegan2', kimg=.016, batch=8, channel_base=256, channel_max=16)
    train(cfg, tmp_path/'run', quiet=True)
    before = (tmp_path/'run'/'log.jsonl').read_bytes()
    with pytest.raises(ValueError, match='already holds a run'): train(cfg, tmp_path/'run', quiet=True)
    assert (tmp_path/'run'/'log.jsonl').read_bytes() == before


def test_continuing_with_another_batch_reaches_the_end(tiny, tmp_path):
    cfg = dict(data=str(tiny/'tiles.lmdb'), arch='stylegan2', channel_base=256, channel_max=16)
    train(TrainConfig(**cfg, kimg=.024, batch=8), tmp_path/'a', quiet=True)
    run = train(TrainConfig(**cfg, kimg=.05, batch=16), tmp_path/'b', ckpt=tmp_path/'a', quiet=True)
    assert run.latest()['nimg'] == 56                                                     # 24 + 2 x 16: the first step at or past the end
    with pytest.raises(ValueError, match='already at'): train(TrainConfig(**cfg, kimg=.05, batch=16), tmp_path/'c', ckpt=run.path, quiet=True)
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
    with pytest.raises(ValueError, match='nets.G of the checkpoint does not fit'): train(TrainConfig(**cfg, channel_max=8), tmp_path/'b', ckpt=tmp_path/'a', quiet=True)
