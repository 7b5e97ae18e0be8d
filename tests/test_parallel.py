"""Two processes train as one, and none of them waits for a dead one."""
import json, os, signal, subprocess, sys, time
import pytest, torch
from histoxplaining.checkpoints import RunDir
from test_resume import ALL, flat

SCRIPT = '''
import json, sys, torch
torch.set_num_threads(1)
from histoxplaining.files import HxError
from histoxplaining.training import TrainConfig, train
data, out, clf, cfg = sys.argv[1:]
try: train(TrainConfig(data=data, **json.loads(cfg)), out, clf)
except HxError as e: sys.exit(f'error: {e}')
'''


def launch(n, tiny, out, cfg):
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}',
        '--no-python'] if n > 1 else []
    return subprocess.Popen([*torchrun, sys.executable, '-c', SCRIPT, str(tiny/'tiles.lmdb'), str(out),
        str(tiny/'classifier.safetensors'), json.dumps(cfg)],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env=os.environ | {'OMP_NUM_THREADS': '1'})


def test_two_processes_train_as_one(tiny, tmp_path):
    # rounding would hide what is compared
    cfg = ALL | dict(kimg=.08, ae_kimg=.016, snap_kimg=.08, metrics_kimg=.08, batch=16, balance=True, bf16=False)
    runs = []
    for n in (1, 2):
        p = launch(n, tiny, tmp_path/str(n), cfg)
        out, _ = p.communicate(timeout=400)
        assert p.returncode == 0, out
        runs.append(RunDir(tmp_path/str(n)))
    one, two = (r.latest() for r in runs)
    assert one['ada'] == two['ada'] and one['ada']['p'] > 0
    for group in ('nets', 'ema'):
        # single weights with a gradient of about zero are moved by its sign, which is rounding
        for k in one[group]:
            a, b = (torch.cat([v.flatten().double() for _, v in flat(s[group][k]) if v.is_floating_point()])
                for s in (one, two))
            assert (a - b).norm() < (1e-2 if k == 'P' else 1e-4) * a.norm(), (group, k,
                ((a - b).norm() / a.norm()).item())
    for k in one['norms']: assert abs(one['norms'][k] - two['norms'][k]) < .03 * one['norms'][k], k
    first, second = ([r for r in run.read_log() if r.get('snapshot')][-1] for run in runs)
    assert first.keys() == second.keys() and 'kid/lite0' in first
    for k, v in first.items():
        assert abs(v - second[k]) <= .06 * abs(v) + .06 if isinstance(v, float) else v == second[k], (k, v, second[k])
    rows = [[r for r in run.read_log() if 'l1' in r] for run in runs]
    for r, s in zip(*rows):
        for k in ('l1', 'kl', 'd_adv', 'd_proj', 'prior', 'style'):
            assert abs(r.get(k, 0) - s.get(k, 0)) < (1e-3 if r['nimg'] <= 48
                else .1) * (1 + abs(r.get(k, 0))), (r['nimg'], k, r[k], s[k])


def test_a_dead_process_ends_the_others_with_a_message(tiny, tmp_path):
    p = launch(2, tiny, tmp_path/'run', ALL | dict(kimg=100))
    run, deadline = RunDir(tmp_path/'run'), time.time() + 200
    while not (rows := run.read_log()) or rows[-1]['nimg'] < 48:
        assert p.poll() is None and time.time() < deadline, p.communicate()[0]; time.sleep(.05)
    workers = [int(v) for v in subprocess.run(['pgrep', '-P', str(p.pid)], capture_output=True,
        text=True).stdout.split()]
    victim = next(w for w in workers if b'\0RANK=1\0' in b'\0' + open(f'/proc/{w}/environ', 'rb').read())
    os.kill(victim, signal.SIGKILL)
    out, _ = p.communicate(timeout=120)
    assert p.returncode != 0 and 'another process of this run has ended or does not answer' in out, out[-2000:]
    assert run.latest()['nimg'] >= 0
