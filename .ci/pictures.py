"""Pictures in notebooks that weigh more than 40 kB become JPEG of quality 78: `python .ci/pictures.py [NOTEBOOK ...]`.
Diagrams of few colours are small and stay PNG. The state of widgets is dropped: they live where a notebook runs."""
import base64, io, json, sys
from pathlib import Path
from PIL import Image

LIMIT, QUALITY = 40_000, 78


def smaller(png):
    "Bytes of a JPEG, or None where that would not be smaller by a quarter."
    out = io.BytesIO()
    im = Image.open(io.BytesIO(png)).convert('RGBA')
    on_white = Image.alpha_composite(Image.new('RGBA', im.size, 'white'), im).convert('RGB')
    on_white.save(out, 'JPEG', quality=QUALITY, optimize=True)
    return out.getvalue() if out.tell() < .75 * len(png) else None


def lighten(path):
    "Rewrite a notebook where a picture can be smaller. Gives the bytes saved."
    text = path.read_text(encoding='utf-8')
    notebook, saved = json.loads(text), 0
    for cell in notebook['cells']:
        for data in (o['data'] for o in cell.get('outputs', ()) if 'data' in o):
            png = data.get('image/png')
            png = base64.b64decode(''.join(png)) if png else b''
            jpeg = smaller(png) if len(png) > LIMIT else None
            if jpeg is None: continue
            del data['image/png']
            data['image/jpeg'] = base64.b64encode(jpeg).decode()
            saved += len(png) - len(jpeg)
    saved += len(json.dumps(notebook['metadata'].pop('widgets', '')))
    if saved > 2:
        text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
        path.write_text(text + '\n', encoding='utf-8')
    return saved


def main():
    given = [Path(a) for a in sys.argv[1:]]
    for path in given or sorted(p for p in Path('nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts):
        saved = lighten(path)
        if saved > 2: print(f'{path}: {saved / 1e3:.0f} kB less')


if __name__ == '__main__': main()
