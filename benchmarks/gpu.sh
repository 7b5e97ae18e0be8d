#!/usr/bin/env bash
# Everything that waits for a GPU, in one go, for a machine with a recent NVIDIA card, PyTorch, timm and torchmetrics, and no network.
#
#   python benchmarks/pack.py STORE CLASSIFIER MODEL --out pack      # before, where there is a network
#   bash benchmarks/gpu.sh OUT [SECONDS] [PACK]                      # there; OUT is filled as results come
#
# In this order, each under its own time limit: operator tests and their speed, the modulated convolution's forms, training speed, and then the model is trained on for all the time that is left;
# its weights come in float16, in pieces of at most 16 MB. LEARN=prior trains the model's prior on in its place, LEARN=together generator, explained classifier and then the prior (`together.py`),
# LEARN=distil makes a translator from the prior's answers (`distil.py`).
# SKIP="tests ops" leaves steps out. TINY=1 tries the whole script on a CPU in a minute or two.
set -u
out=$(realpath -m "${1:?where results go}"); seconds=${2:-540}; pack=$(realpath "${3:-pack}")
begin=$SECONDS; cd "$(dirname "$0")/.." || exit 1
mkdir -p "$out"
export HX_WEIGHTS="$pack/weights" PYTHONPATH="$PWD:$PWD/benchmarks" TORCHDYNAMO_VERBOSE=0
py=${PYTHON:-python3}
if [ -n "${TINY:-}" ]; then device=cpu; speed="--sizes 64 --batch 8 --steps 1 --forms float32 --classes 2"; quick=--quick; train="batch=8 channel_base=256 channel_max=16"
else device=cuda; speed=""; quick=""; train="batch=64 num_fp16_res=4"; fi
[ -d "$pack/wheels" ] && "$py" -m pip install -q --no-index --no-deps "$pack"/wheels/*.whl > "$out/pip.txt" 2>&1

left() { echo $((seconds - SECONDS + begin)); }
step() { # name, limit, command: its output as it comes, and a line about how it ended
    local name=$1 limit=$2; shift 2
    case " ${SKIP:-} " in *" $name "*) return;; esac
    [ "$limit" -gt "$(left)" ] && limit=$(left)
    [ "$limit" -lt 5 ] && { echo "$name: no time left" | tee -a "$out/steps.txt"; return; }
    local t=$SECONDS; timeout -k 20 "$limit" "$@" > "$out/$name.txt" 2>&1; echo "$name: status $? after $((SECONDS - t)) s" | tee -a "$out/steps.txt"
}

step card 20 bash -c 'nvidia-smi || true; '"$py"' -c "import torch; print(torch.__version__, torch.version.cuda)"'
if [ -n "${TINY:-}" ]; then step tests 90 "$py" -m pytest -q -x tests/test_ops.py -k "reference and not slow"
else step tests 150 "$py" -m pytest -q -x tests/test_ops.py; fi
step ops 60 "$py" benchmarks/ops.py --device $device $quick
step modconv 60 "$py" benchmarks/modconv.py --device $device $quick
step speed 150 "$py" benchmarks/gpu.py --device $device $speed
if [ "${LEARN:-}" = together ]; then
    more=""; [ -n "${TINY:-}" ] && more="--batch 8 --prior_batch 8"
    step together $(($(left) - 5)) "$py" benchmarks/together.py "$pack/model" "$pack/tiles.lmdb" "$out" --device $device $more \
        --seconds $(($(left) - 40))
    cat "$out/steps.txt"; exit
fi
if [ "${LEARN:-}" = distil ]; then
    more="--batch 256 --held 1024"; [ -n "${TINY:-}" ] && more="--batch 8 --held 8 --every 2"
    step distil $(($(left) - 5)) "$py" benchmarks/distil.py "$pack/model" "$pack/tiles.lmdb" "$out" --device $device $more \
        --pairs $((($(left) - 60) * 3 / 10)) --codes $((($(left) - 60) * 2 / 10)) --seconds $((($(left) - 60) / 2))
    cat "$out/steps.txt"; exit
fi
step training $(($(left) - 25)) "$py" - "$pack" "$out" $((seconds - SECONDS + begin - 40)) $device $train <<'PY'
import os, signal, sys, threading
from pathlib import Path
from histoxplaining import TrainConfig, train
pack, out, limit, device, *given = sys.argv[1:]
given = {k: int(v) for k, v in (g.split('=') for g in given)}
threading.Timer(max(int(limit), 5), lambda: os.kill(os.getpid(), signal.SIGTERM)).start()          # then it saves and ends
tiny = device == 'cpu'
if os.environ.get('LEARN') == 'prior':
    learn = dict(arch='prior', init=f'{pack}/model', beside=Path(f'{pack}/model/prior.safetensors').exists(), batch=8 if tiny else 512)
else: learn = dict(arch='StyleEx', init=None if tiny else f'{pack}/model', ae_kimg=.008 if tiny else 0, metrics_kimg=0, **given)
cfg = TrainConfig(data=f'{pack}/tiles.lmdb', device=device, balance=True, kimg=.016 if tiny else 5000, snap_kimg=50, log_kimg=1, **learn)
run = train(cfg, f'{out}/run', f'{pack}/classifier.safetensors')
os._exit(0)
PY
step weights 20 "$py" - "$out" <<'PY'
import sys
from pathlib import Path
from histoxplaining.files import load_meta, load_tensors, save_tensors
out = Path(sys.argv[1])
for f in sorted((out/'run'/'model').glob('*.safetensors')):
    half = {k: v.half() if v.is_floating_point() else v for k, v in load_tensors(f).items()}
    parts, size = [{}], 0
    for k, v in half.items():
        n = v.numel() * v.element_size()
        if size + n > 15 * 2**20 and parts[-1]: parts.append({}); size = 0
        parts[-1][k] = v; size += n
    for i, p in enumerate(parts): save_tensors(out/f'{f.stem}.{i}-of-{len(parts)}.safetensors', p, load_meta(f) or {})
PY
cp "$out/run/log.jsonl" "$out/run/model/card.json" "$out" 2>/dev/null
cat "$out/steps.txt"
