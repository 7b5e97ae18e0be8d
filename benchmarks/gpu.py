"""Training speed on a GPU, without a store: images per second of a StyleEx step at 64, 128 and 256 px, in each form
that is worth trying.

    python benchmarks/gpu.py [--device cuda] [--sizes 64,128,256] [--batch 64] [--steps 30] [--classes 5]

float32, TF32, float16 in the four finest resolutions, and that with PyTorch's compiler for the projected
discriminator's frozen backbone. A step includes everything: encoder, generator, perceptual distance, classifier, both
optimisers. Prints a line for each as it comes, and as the last line one JSON object. --device cpu with --sizes 64
--batch 8 --steps 2 tries the script itself."""
import argparse, json, time
import torch

from histoxplaining.classifier import Classifier
from histoxplaining.backbones import backbone
from histoxplaining.features import perceptual
from histoxplaining.training_step import TrainConfig, TrainState, resolve, train_step

FORMS = {'float32': dict(num_fp16_res=0), 'tf32': dict(num_fp16_res=0), 'float16': dict(num_fp16_res=4),
    'float16+compile': dict(num_fp16_res=4)}


def speed(form, size, batch, steps, classes, device):
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = form != 'float32'
    names = tuple(f'class {k}' for k in range(classes))
    clf = Classifier(backbone('tf_efficientnet_lite0@16', classes), names, size,
        arch='tf_efficientnet_lite0@16').frozen().to(device)
    cfg = resolve(TrainConfig(data='', arch='StyleEx', kimg=1000, batch=batch, ae_kimg=.001, device=device,
        channel_base=4096, channel_max=256, **FORMS[form]), size)
    st, dist = TrainState(cfg, classes), perceptual(cfg.perceptual).to(device)
    st.nimg = 1024                                                     # past the autoencoder's time
    if 'compile' in form: st.P.net = torch.compile(st.P.net)
    x, y = torch.rand(batch, 3, size, size, device=device) * 2 - 1, torch.arange(batch, device=device) % classes
    wait = torch.cuda.synchronize if device != 'cpu' else lambda: None
    for _ in range(1 if device == 'cpu' else 4): train_step(st, cfg, clf, dist, x, y)
    wait(); begin = time.perf_counter()
    for _ in range(steps): train_step(st, cfg, clf, dist, x, y)
    wait()
    return steps * batch / (time.perf_counter() - begin)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='cuda'); p.add_argument('--sizes',
        default='64,128,256'); p.add_argument('--batch', type=int, default=64)
    p.add_argument('--steps', type=int, default=30); p.add_argument('--classes', type=int,
        default=5); p.add_argument('--forms', default=','.join(FORMS))
    a, out = p.parse_args(), {}
    print(torch.cuda.get_device_name() if a.device != 'cpu' else 'CPU')
    for size in map(int, a.sizes.split(',')):
        for form in a.forms.split(','):
            try: out[f'{size}/{form}'] = round(speed(form, size, a.batch, a.steps, a.classes, a.device), 1)
            except (RuntimeError, MemoryError) as e: out[f'{size}/{form}'] = str(e).splitlines()[0][:120]
            print(f'{size} px, {form}: {out[f"{size}/{form}"]} images/s', flush=True)
    print(json.dumps(out))


if __name__ == '__main__': main()
