"""What a machine without a network needs beside this folder, in one folder of a stated size: wheels, weights, tiles
and the newest model.

    python benchmarks/pack.py STORE CLASSIFIER MODEL --out pack [--mb 30] [--python 3.12] [--weights FOLDER]

Tiles travel as AVIF, of the best quality from 90 down to 75 at which they fit into --mb; where even that is too much,
every k-th tile is left out. The store's manifest says what was lost, in grey levels. `gpu.sh` reads the pack."""
import argparse, io, json, shutil, subprocess, sys
from importlib.metadata import version
from pathlib import Path
import lmdb, numpy as np
from PIL import Image

from histoxplaining import TileStore
from histoxplaining.explainer import model_folder
from histoxplaining.sources import lmdb_value
from histoxplaining.files import find_weights, load_meta, load_tensors, save_tensors

# what a machine with PyTorch, timm and torchmetrics may lack, in the versions that are in use here
WHEELS = [f'{name}=={version(name)}' for name in 'fastcore fastprogress lmdb safetensors ninja'.split()]
WEIGHTS = [['tf_efficientnet_lite0_imagenet.safetensors'], ['alexnet_imagenet_features.safetensors']]


def small(img, quality):
    b = io.BytesIO()
    # on tissue, at seven to ten thousand bytes a tile of 128 px, nearer to it than WebP, and that than JPEG
    Image.fromarray(img).save(b, format='AVIF', quality=quality, subsampling='4:4:4', speed=6)
    return b.getvalue()


def chosen(store, limit):
    "Quality and stride at which the tiles fit into so many bytes, judged by 200 of them."
    some = [store[int(i)][0] for i in np.linspace(0, len(store) - 1, min(200, len(store))).astype(int)]
    size = {q: np.mean([len(small(t, q)) for t in some]) * len(store) for q in (90, 85, 80, 75)}
    q = next((q for q, b in size.items() if b <= limit), 75)
    return q, max(1, -(-int(size[q]) // int(limit)))


def tiles(store, out, limit):
    "The same store with fewer bytes: keys and order stay, or every k-th tile."
    quality, stride = chosen(store, limit)
    keep = np.arange(0, len(store), stride)
    out.mkdir(parents=True)
    with lmdb.open(str(out), map_size=2**31, lock=False) as env, env.begin(write=True) as txn:
        off = 0.
        for k, i in enumerate(keep):
            img = store[int(i)][0]
            data = small(img, quality)
            off += np.abs(np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).astype(int) - img).mean() / len(keep)
            txn.put(b'tile/%08d' % k, data)
        for key in (b'labels', b'split', b'moments', b'pseudo', b'groups'):
            if (raw := lmdb_value(store.path, key)) is not None:
                txn.put(key, np.frombuffer(raw, np.uint8).reshape(len(store), -1)[keep].tobytes())
        labels = store.labels[keep]
        manifest = store.manifest | dict(encoding=f'AVIF, quality {quality}', loss=round(float(off), 3),
            counts={c: int((labels == y).sum()) for y, c in enumerate(store.classes)})
        txn.put(b'names', json.dumps([store.names[i] for i in keep]).encode())
        txn.put(b'manifest', json.dumps(manifest).encode())
    return quality, stride, off


def halved(path, out):
    "The same tensors in float16: nothing that matters is lost where a network begins from them."
    save_tensors(out, {k: v.half() if v.is_floating_point() else v for k, v in load_tensors(path).items()},
        load_meta(path) if path.suffix == '.safetensors' else None)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('store'); p.add_argument('classifier'); p.add_argument('model',
        help='model folder to train on from, or the name of a packaged model')
    p.add_argument('--out', type=Path, default=Path('pack')); p.add_argument('--mb', type=float,
        default=30); p.add_argument('--python', default='3.12')
    p.add_argument('--no_wheels', action='store_true')
    a = p.parse_args()
    if a.out.exists(): sys.exit(f'{a.out}: exists already')
    (a.out/'weights').mkdir(parents=True)
    if not a.no_wheels:
        subprocess.check_call([sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--only-binary=:all:',
            '--python-version', a.python, '-d', str(a.out/'wheels'), *WHEELS])
    for names in WEIGHTS:
        if found := find_weights(names): halved(found, a.out/'weights'/found.name)
    shutil.copy(a.classifier, a.out/'classifier.safetensors')
    (a.out/'model').mkdir()
    # what training starts from; the rest it makes itself
    for f in model_folder(a.model).glob('*'):
        if f.suffix == '.json': shutil.copy(f, a.out/'model')
        elif f.stem in ('generator', 'encoder', 'classifier', 'prior'): halved(f, a.out/'model'/f.name)
    quality, stride, off = tiles(TileStore(a.store), a.out/'tiles.lmdb', a.mb * 2**20)
    size = sum(f.stat().st_size for f in a.out.rglob('*') if f.is_file()) / 2**20
    print(f'{a.out}: {size:.1f} MB; tiles as AVIF of quality {quality}, off by {off:.2f} grey levels, '
        f'{"all" if stride == 1 else f"one in {stride}"}')


if __name__ == '__main__': main()
