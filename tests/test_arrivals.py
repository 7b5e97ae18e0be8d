"""What people arrive with: classifiers, pictures, tables and folders in every form. Understood, with the right value,
or refused by name; never a wrong number without a word."""

import errno, json, os, shutil, warnings, zipfile
import numpy as np, pytest, torch, torch.nn as nn, torch.nn.functional as F
from PIL import Image
from histoxplaining.backbones import architecture
from histoxplaining.classifier import Classifier, check_names
from histoxplaining.counterfactual import explain
from histoxplaining.explainer import Explainer, as_batch, as_picture, as_pictures, model_folder
from histoxplaining.files import HxError
from histoxplaining.images import read_image, to_uint8, write_png
from histoxplaining.sources import open_source, picture_files
from histoxplaining.synthetic import write_folder
from histoxplaining.tiles import TileStore

AB = ('healthy', 'adenocarcinoma')


@pytest.fixture(autouse=True)
def seeded():
    "Random networks are the same whatever ran before: one in many gives numbers from 0 to 1, which are asked about."
    torch.manual_seed(0)


@pytest.fixture(scope='module')
def tiles(tmp_path_factory): return write_folder(tmp_path_factory.mktemp('tissue')/'tiles', 36, 32, seed=0)


@pytest.fixture
def copy(tiles, tmp_path): return shutil.copytree(tiles, tmp_path/'t')


@pytest.fixture(scope='module')
def colon(): return Explainer.from_pretrained('colon-64')


@pytest.fixture(scope='module')
def drawn(colon):
    with torch.no_grad():
        return colon.render(colon.sample(range(100, 108)))


def load(f, **kw): return Classifier.load(f, **dict(classes=AB, size=64, mean=(.5,) * 3, std=(.5,) * 3) | kw)


# ---- classifiers: what comes out

def test_probabilities_give_the_answers_of_the_logits(colon, drawn):
    own = colon.classifier
    true = own(as_batch(drawn, 64)[0]) / own.temperature
    with pytest.warns(UserWarning, match='reads as probabilities'):
        soft = load(lambda x: (own(x) / own.temperature).softmax(1))
    assert torch.allclose(soft.probs(as_batch(drawn, 64)[0]), true.softmax(1), atol=1e-5)
    one = load(lambda x: torch.sigmoid((own(x) / own.temperature)[:, 1] - (own(x) / own.temperature)[:, 0]),
        output='probs')
    assert torch.allclose(one.probs(as_batch(drawn, 64)[0]), true.softmax(1), atol=1e-4)


def test_what_could_be_either_is_asked_about():
    with pytest.raises(HxError, match='say what they are'):
        load(lambda x: torch.sigmoid(x.mean((2, 3))[:, :2] * 3 + .3))
    with pytest.raises(HxError, match="label="):
        load(lambda x: torch.sigmoid(x.mean((2, 3))), classes=('a', 'b', 'c'), output='sigmoid')
    with pytest.raises(HxError, match='gives values from'): load(lambda x: x.mean((2, 3))[:, :2], output='probs')
    clf = load(lambda x: torch.sigmoid(x.mean((2, 3))), classes=('a', 'b', 'c'), output='sigmoid', label='b')
    x = torch.rand(3, 3, 64, 64) * 2 - 1
    assert clf.classes == ('not b', 'b') and torch.allclose(clf.probs(x)[:, 1], torch.sigmoid(x.mean((2, 3)))[:, 1],
        atol=1e-5)


@pytest.mark.parametrize('wrap', [lambda y: (y, None), lambda y: {'logits': y},
    lambda y: type('Out', (), {'logits': y})(), lambda y: y.half(), lambda y: y.numpy()])
def test_outputs_in_any_wrapping(wrap):
    net = lambda x: x.mean((2, 3))[:, :2]
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    assert torch.allclose(load(lambda v: wrap(net(v)))(x), load(net)(x), atol=2e-3)


def test_answers_that_change_are_refused_and_networks_in_closures_rest():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 1)).train()
    before = net[1].running_mean.clone()
    clf = load(lambda x: F.pad(net(x), (1, 0)))
    x = torch.rand(4, 3, 64, 64)
    assert torch.allclose(clf(x), clf(x), atol=1e-6) and torch.equal(net[1].running_mean, before)
    with pytest.raises(HxError, match='differ between two calls'):
        load(lambda x: x.mean((2, 3))[:, :2] + torch.randn(len(x), 2))
    with pytest.raises(HxError, match='not finite'): load(lambda x: x.mean((2, 3))[:, :2] * float('nan'))


def test_one_channel_half_precision_and_fixed_size():
    with pytest.warns(UserWarning, match='one channel'):
        grey = load(nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    assert grey(torch.zeros(2, 3, 64, 64)).shape == (2, 2)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    x = torch.rand(2, 3, 64, 64)
    full = load(net)(x)
    assert torch.allclose(load(net.half())(x), full, atol=1e-2)
    with pytest.raises(HxError, match='size=64'): load(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)))


def test_names_of_a_state_dict_are_measured(tiles, tmp_path):
    store = TileStore.create(tiles, tmp_path/'s.lmdb', size=32, split_by='random', val=.3)
    truth = {store[i][0].tobytes(): store[i][1] for i in range(len(store))}
    # the other order
    def knows(x):
        return torch.stack([torch.tensor([float(truth[p.tobytes()] == k) for p in to_uint8(x)]) for k in (1, 0)],
            1)
    clf = Classifier(knows, store.classes, 32, (.5,) * 3, (.5,) * 3)
    with pytest.raises(HxError, match=r'right on 0% of \d+ tiles.*but on 100% with tumour, benign'):
        check_names(clf, store)
    check_names(Classifier(lambda x: knows(x).flip(1), store.classes, 32), store)
    # knows nothing: no other names are better
    check_names(Classifier(lambda x: torch.zeros(len(x), 2), store.classes, 32), store)


def test_settings_beside_a_file_are_used(tmp_path):
    clf = Classifier(architecture('test_resnet', 2)[0], ('a', 'b'), 64, arch='test_resnet')
    clf.save(tmp_path/'own.safetensors')
    got = Classifier.load(tmp_path/'own.safetensors', size=128, mean=(0., 0., 0.))
    assert got.size == 128 and got.mean.sum() == 0 and torch.equal(got.std, clf.std)
    assert Classifier.load(clf, size=32).size == 32


@pytest.mark.parametrize('wrap', [lambda sd: {'_orig_mod.' + k: v for k, v in sd.items()},
    lambda sd: {'module._orig_mod.' + k: v for k, v in sd.items()},
    lambda sd: dict(state_dict={'model.' + k: v for k, v in sd.items()}, epoch=3),
        lambda sd: dict(net={'backbone.' + k: v for k, v in sd.items()}, epoch=1)])
def test_wrapped_checkpoints(tmp_path, wrap):
    net = architecture('test_resnet', 2)[0]
    torch.save(wrap(net.state_dict()), tmp_path/'x.pth')
    got = Classifier.load('test_resnet', weights=tmp_path/'x.pth', classes=('a', 'b'))
    assert all(torch.equal(v, got.model.state_dict()[k]) for k, v in net.state_dict().items())


def test_a_program_travels_with_a_file(tmp_path):
    net = architecture('test_resnet', 2)[0].eval()
    torch.jit.trace(net, torch.zeros(1, 3, 32, 32)).save(str(tmp_path/'ts.pt'))
    clf = Classifier.load(tmp_path/'ts.pt', classes=('a', 'b'), size=32)
    clf.save(tmp_path/'c.safetensors')
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    assert torch.allclose(Classifier.load(tmp_path/'c.safetensors')(x), clf(x))


def test_onnx(tmp_path):
    ort = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx')
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    torch.onnx.export(net, (torch.zeros(2, 3, 64, 64),), tmp_path/'n.onnx', dynamo=False)
    x = torch.rand(5, 3, 64, 64) * 2 - 1
    assert torch.allclose(load(tmp_path/'n.onnx')(x), load(net)(x), atol=1e-4)


def test_without_gradients_an_answer_or_a_reason(colon, drawn):
    own = colon.classifier
    def numbers(x):
        with torch.no_grad(): return own(x)
    for c in explain(colon, drawn[:4], classifier=load(numbers, temperature=own.temperature), refine=0):
        assert c.success or c.reason.code in ('no method', 'below', 'reconstruction', 'outside'), c
    [c] = explain(colon, drawn[:1], classifier=load(numbers), method='gradient', refine=0)
    assert c.success or 'gradient' in c.reason or c.reason.code in ('reconstruction', 'outside')
    with pytest.raises(HxError, match='Classifier.load'): explain(colon, drawn[:1], classifier=own.model)


def test_the_decision_about_a_file_is_made_at_its_own_size(colon, drawn, tmp_path):
    lap = torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0.]]).view(1, 1, 3, 3)
    def texture(x):
        z = 40 * (F.conv2d(x.mean(1, keepdim=True), lap).abs().mean((1, 2, 3)) - .05)
        return torch.stack([-z, z], 1)
    clf = load(texture, size=224, mean=(0, 0, 0), std=(1, 1, 1))
    rng, big = np.random.default_rng(0), []
    for i, p in enumerate(drawn[:4]):
        a = np.asarray(Image.fromarray(p).resize((224, 224), Image.BICUBIC)).astype(float) + (rng.normal(0, 18,
            (224, 224, 1)) if i % 2 else 0)
        big.append(a.clip(0, 255).astype(np.uint8))
    own = clf.probs(torch.from_numpy(np.stack(big)).permute(0, 3, 1, 2).float() / 127.5 - 1).argmax(1).tolist()
    assert own == [0, 1, 0, 1]
    for c, k in zip(explain(colon, big, classifier=clf, refine=0), own):
        assert c.source == AB[k] and (k == 0 or c.reason.code == 'size' and '224 px' in c.reason)


# ---- pictures

def test_tensors_and_arrays_in_any_layout(drawn):
    a = drawn[0]
    t = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255
    with pytest.warns(UserWarning, match='from 0 to 1'): as_batch(t, 64)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(as_batch(t * 2 - 1, 64)[0], as_batch(drawn, 64)[0])
        for v in (Image.fromarray(a), np.moveaxis(a, -1, 0), np.dstack([a, np.full(a.shape[:2], 255, np.uint8)]),
                a / 255., a.astype(np.int64)): assert np.abs(as_picture(v).astype(int) - a).max() <= 1
        assert as_picture(a[..., 0]).shape == a.shape
        assert len(as_batch(a, 64)[0]) == 1 and len(as_batch(Image.fromarray(a), 64)[0]) == 1
    with pytest.raises(HxError, match='values from'): as_picture(a / 255. * 3)
    with pytest.warns(UserWarning, match='not square'): as_pictures(np.zeros((64, 200, 3), np.uint8))


def tiff(path, pages, **kw):
    pages[0].save(path, format='TIFF', save_all=True, append_images=pages[1:], **kw)
    return path


def test_orientation_depth_and_pages(drawn, tmp_path):
    a = drawn[0].copy()
    a[:20, :20] = 0
    turned, exif = np.rot90(a, 3), Image.Exif()
    exif[0x0112] = 6
    for name in ('o.png', 'o.tif'):
        Image.fromarray(a).save(tmp_path/name, exif=exif)
        assert (read_image(tmp_path/name) == turned).all(), name
    Image.fromarray(a).save(tmp_path/'o.jpg', exif=exif, quality=98)
    assert np.abs(read_image(tmp_path/'o.jpg').astype(int) - turned).mean() < 6
    im = Image.fromarray(a)
    with pytest.raises(HxError, match='holds 3 pages'): read_image(tiff(tmp_path/'three.tif', [im, im, im]))
    assert (read_image(tiff(tmp_path/'pyramid.tif', [im, im.resize((32, 32)), im.resize((16, 16))])) == a).all()
    for name, kw in (('a.bmp', {}), ('a.webp', dict(lossless=True)), ('cmyk.tif', {})):
        (im.convert('CMYK') if 'cmyk' in name else im).save(tmp_path/name, **kw)
        assert np.abs(read_image(tmp_path/name).astype(int) - a).max() <= 2, name
    mask = np.dstack([a, np.ones(a.shape[:2], np.uint8)])
    Image.fromarray(mask).save(tmp_path/'mask.png')
    assert (read_image(tmp_path/'mask.png') == a).all()


def png16(path, a):
    import struct, zlib
    raw = b''.join(b'\0' + row.astype('>u2').tobytes() for row in a)
    chunk = lambda k, d: struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR',
        struct.pack('>IIBBBBB', a.shape[1], a.shape[0], 16, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(raw)) +
        chunk(b'IEND', b''))
    return path


def test_sixteen_bits(drawn, tmp_path):
    a = drawn[0].astype(np.uint16)
    assert np.abs(read_image(png16(tmp_path/'full.png', a * 257)).astype(int) - a).max() <= 1
    # dark, but of full range
    assert np.abs(read_image(png16(tmp_path/'dark.png', a * 40)).astype(int) - a * 40 // 256).max() <= 1
    with pytest.raises(HxError, match='12-bit'): read_image(png16(tmp_path/'twelve.png', a * 16))


# ---- folders and tables

def test_parts_of_a_split_are_no_classes_and_cases_are_groups(tiles, tmp_path, capsys):
    files = {c: sorted((tiles/c).glob('*.png')) for c in ('benign', 'tumour')}
    for part in ('train', 'val', 'test'):
        for c in files: shutil.copytree(tiles/c, tmp_path/'tvt'/part/c)
    with pytest.raises(HxError, match='parts of a split'): open_source(tmp_path/'tvt')
    for p in range(4):
        for k, c in enumerate(files):
            (tmp_path/'idc'/f'{10250 + p}'/str(k)).mkdir(parents=True)
            for f in files[c][4 * p:4 * p + 4]: shutil.copy(f, tmp_path/'idc'/f'{10250 + p}'/str(k)/f.name)
    store = TileStore.create(tmp_path/'idc', tmp_path/'s.lmdb', size=32, val=.25)
    assert store.classes == ('0',
        '1') and store.manifest['split_by'] == 'group' and 'slides or patients' in capsys.readouterr().out
    assert not {n.split('/')[0] for n in store.train.names} & {n.split('/')[0] for n in store.val.names}


def test_patients_below_classes_stay_on_one_side(tiles, tmp_path):
    for c in ('benign', 'tumour'):
        for i, f in enumerate(sorted((tiles/c).glob('*.png'))):
            (tmp_path/'t'/c/f'p{i % 6}').mkdir(parents=True, exist_ok=True)
            shutil.copy(f, tmp_path/'t'/c/f'p{i % 6}'/f.name)
    store = TileStore.create(tmp_path/'t', tmp_path/'s.lmdb', size=32, val=.2)
    patient = lambda view: {n.split('/')[1] for n in view.names}
    assert store.classes == ('benign', 'tumour') and len(store.val) and not patient(store.train) & patient(store.val)


def test_a_picture_under_two_labels_and_copies(copy, tmp_path, capsys):
    f = sorted((copy/'benign').glob('*.png'))
    for k in range(6): shutil.copy(f[1], copy/'benign'/f'copy{k}.png')
    store = TileStore.create(copy, tmp_path/'s.lmdb', size=32, split_by='random', val=.4)
    held = {n in set(store.val.names) for n in store.names if 'copy' in n or n.endswith(f[1].name)}
    assert len(held) == 1 and store.manifest['copies'] == 6
    shutil.copy(f[0], copy/'tumour'/'same.png')
    with pytest.raises(HxError, match='one picture under two labels: benign/.* is benign, tumour/same.png is tumour'):
        TileStore.create(copy, tmp_path/'two.lmdb', size=32, on_error='raise')
    assert not (tmp_path/'two.lmdb').exists()
    capsys.readouterr()
    two = TileStore.create(copy, tmp_path/'two.lmdb', size=32)         # otherwise both are left out, and named
    assert f'{f[0].name} is benign, tumour/same.png is tumour; 2 such pictures were left out' in capsys.readouterr().out
    assert len(two) == len(store) - 1 and not {'tumour/same.png',
        f'benign/{f[0].name}'} & set(two.names) and len(two.manifest['skipped']) == 2
    old = {n: store[i][0] for i, n in enumerate(store.names)}
    # the others kept their pictures and labels
    assert all((two[i][0] == old[n]).all() and two.classes[two[i][1]] == n.split('/')[0] for i,
        n in enumerate(two.names))


def test_properties_are_no_classes(copy):
    names = sorted(p.relative_to(copy).as_posix() for p in copy.rglob('*.png'))
    for rows in ([[n, [float(i), 63.5 + i]] for i, n in enumerate(names)],
            [[n, [.2, .9, .1 * (i % 9)]] for i, n in enumerate(names)]):
        (copy/'dataset.json').write_text(json.dumps({'labels': rows}))
        with pytest.raises(HxError, match='properties, not classes'): open_source(copy)
    (copy/'dataset.json').write_text(json.dumps({'labels': [[n, [float(i % 2), float(i % 2 == 0)]] for i,
        n in enumerate(names)]}))
    assert len(open_source(copy).classes) == 2


def test_a_table_inside_a_folder_counts_as_in_its_zip(copy, tmp_path, capsys):
    files = sorted(p.relative_to(copy).as_posix() for p in copy.rglob('*.png'))
    (copy/'labels.csv').write_text('path,label\n' + '\n'.join(f'{f},grade {1 + i % 2}' for i, f in enumerate(files)))
    for name in ('labels.csv', 'LABELS.CSV'):
        with zipfile.ZipFile(tmp_path/'t.zip', 'w') as z:
            for f in files: z.write(copy/f, f)
            z.write(copy/'labels.csv', name)
        assert list(open_source(copy).classes) == list(open_source(tmp_path/'t.zip').classes) == ['grade 1', 'grade 2']
    (copy/'labels.csv').write_text('tile,score\na,1\n')
    assert list(open_source(copy).classes) == ['benign', 'tumour'] and 'not used' in capsys.readouterr().out


@pytest.mark.parametrize('sep, head, encode', [(',', 'path,label', 'utf-8-sig'), (';', 'image;class', 'utf-8'),
    ('\t', 'filename\ttarget', 'utf-16'), (',', 'Path,Label,', 'utf-8')])
def test_tables_of_other_programs(copy, sep, head, encode):
    files = sorted(p.relative_to(copy).as_posix() for p in copy.rglob('*.png'))
    extra = ',' if head.endswith(',') else ''
    text = '\r'.join([head, *(f'{f}{sep}{f.split("/")[0]}{extra}'.replace('/', '\\' if extra else '/') for f in files),
        *([',,'] if extra else [])])
    (copy/'t.csv').write_bytes(text.encode(encode))
    src = open_source(copy/'t.csv')
    assert len(src.items) == len(files) and list(src.classes) == ['benign',
        'tumour'] and src.read(src.items[0].name)[:4] == b'\x89PNG'


def test_a_missing_label_is_no_class(copy):
    (copy/'t.csv').write_text('path,label\nbenign/a.png,nan\n')
    with pytest.raises(HxError, match="line 2: .* says that there is none"): open_source(copy/'t.csv')


def test_system_folders_are_passed_over_and_links_followed(copy, tiles, tmp_path):
    n = len(picture_files(copy))
    for d in ('@eaDir', '.ipynb_checkpoints', '$RECYCLE.BIN'):
        (copy/'benign'/d).mkdir()
        shutil.copy(next((copy/'benign').glob('*.png')), copy/'benign'/d/'x.png')
    (copy/'$RECYCLE.BIN').mkdir()
    shutil.copy(next((copy/'benign').glob('*.png')), copy/'$RECYCLE.BIN'/'x.png')
    assert len(picture_files(copy)) == n and list(open_source(copy).classes) == ['benign', 'tumour']
    links = tmp_path/'links'
    links.mkdir()
    for c in ('benign', 'tumour'): os.symlink(tiles/c, links/c)
    os.symlink(links, links/'benign_loop')
    assert len(picture_files(links)) >= n


def test_names_that_are_no_utf8(copy, tmp_path):
    f = next((copy/'benign').glob('*.png'))
    try: os.rename(f, os.fsencode(f.parent) + b'/M\xfcller.png')
    except OSError: pytest.skip('this file system takes UTF-8 names only')
    assert len(TileStore.create(copy, tmp_path/'s.lmdb', size=32)) == 36


def test_black_that_was_not_scanned_is_no_tissue(tiles, tmp_path):
    t = [read_image(f) for f in sorted(tiles.rglob('*.png'))[:4]]
    big = np.zeros((64, 128, 3), np.uint8)
    big[:32] = np.concatenate(t, 1)
    write_png(tmp_path/'slide.png', big)
    store = TileStore.create(tmp_path/'slide.png', tmp_path/'s.lmdb', size=32, tile=32, tissue=.02)
    assert all(store[i][0].max() > 0 for i in range(len(store))) and store.manifest['glass'] >= 4


def test_pictures_that_lose_their_sides_are_said(tiles, tmp_path, capsys):
    for f in tiles.rglob('*.png'):
        (tmp_path/'t'/f.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(f).resize((140, 92)).save(tmp_path/'t'/f.parent.name/f.name)
    TileStore.create(tmp_path/'t', tmp_path/'s.lmdb', size=32)
    assert '36 pictures are not square' in (out := capsys.readouterr().out) and '34%' in out


# ---- places

def test_a_store_is_found_after_the_folder_was_left(tiles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TileStore.create(tiles, 's.lmdb', size=32)
    store = TileStore('s.lmdb')
    monkeypatch.chdir('/')
    assert store[0][0].shape == (32, 32, 3)


@pytest.mark.parametrize('code', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks(tiles, tmp_path, monkeypatch, capsys, code):
    import fcntl
    def none(*_): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(fcntl, 'flock', none)
    TileStore.create(tiles, tmp_path/'s.lmdb', size=32)
    assert 'has no locks' in capsys.readouterr().out


def test_models_have_names(tmp_path):
    assert model_folder('colon-64').name == 'colon-64'
    with pytest.raises(HxError, match='no such model folder or run, and no model of that name.*colon-64'):
        model_folder('colon-63')
    (tmp_path/'x').mkdir()
    with pytest.raises(HxError, match='no card.json'): model_folder(tmp_path/'x')
    if not torch.cuda.is_available():
        with pytest.raises(HxError, match='no GPU'): Explainer.load('colon-64', device='cuda')


# ---- results as data

def test_a_killed_table_is_gone_on_with(tmp_path, monkeypatch):
    "Every picture once, whatever happened in between; other settings are another table."
    from histoxplaining import cli
    from histoxplaining.results import Table
    real, calls = cli.explain, [0]
    def fragile(*a, **kw):
        calls[0] += 1
        if calls[0] == 2: raise KeyboardInterrupt
        return real(*a, **kw)
    kw = dict(seeds=70, out=str(tmp_path/'r.html'), csv=str(tmp_path/'t.csv'), json=str(tmp_path/'t.json'), frames=0,
        cards=4)
    monkeypatch.setattr(cli, 'explain', fragile)
    with pytest.raises(SystemExit): cli.hx_explain('colon-64', **kw)
    first = (tmp_path/'t.csv').read_text()
    assert 1 < len(first.splitlines()) < 70
    cli.hx_explain('colon-64', **kw)
    rows = Table(tmp_path/'t.csv', json.loads((tmp_path/'t.csv.settings.json').read_text())).rows()
    assert (tmp_path/'t.csv').read_text().startswith(first) and len(rows) == len({r['name'] for r in rows}) == 70
    assert len(json.loads((tmp_path/'t.json').read_text())['results']) == 70
    assert {r['code'] for r in rows if not r['success']} <= {'already', 'size', 'outside', 'reconstruction', 'limit',
        'below', 'no method'}
    with pytest.raises(SystemExit): cli.hx_explain('colon-64', **kw | dict(p=.95))
    assert (tmp_path/'t.csv').read_text().startswith(first)


def test_parts_make_the_whole(tmp_path):
    from histoxplaining.cli import hx_explain
    names = []
    for i in range(2):
        hx_explain('colon-64', seeds=8, shard=f'{i}/2', out=str(tmp_path/f'{i}.html'), csv=str(tmp_path/f'{i}.csv'),
            frames=0)
        names += [l.split(',')[0] for l in (tmp_path/f'{i}.csv').read_text().splitlines()[1:]]
    assert len(names) == len(set(names)) == 8


def test_tiles_without_tissue_are_named_and_near_copies_stay_together(copy, tmp_path, capsys):
    write_png(copy/'benign'/'glass.png', np.full((32, 32, 3), 244, np.uint8) - np.eye(32, dtype=np.uint8)[..., None])
    store = TileStore.create(copy, tmp_path/'a.lmdb', size=32)
    assert store.manifest['bare'] == ['benign/glass.png']
    assert 'no tissue to speak of, such as benign/glass.png' in capsys.readouterr().out
    assert 'benign/glass.png' not in TileStore.create(copy, tmp_path/'b.lmdb', size=32, min_tissue=.1).names
    f = sorted((copy/'tumour').glob('*.png'))[0]
    for k in range(5): Image.open(f).convert('RGB').save(copy/'tumour'/f'near{k}.jpg', quality=95 - k)
    store = TileStore.create(copy, tmp_path/'c.lmdb', size=32, split_by='random', val=.4, near=4)
    assert len({n in set(store.val.names) for n in store.names if 'near' in n
        or n.endswith(f.name)}) == 1 and store.manifest['copies'] >= 5


def test_features_of_a_store_are_computed_once(tiles, tmp_path, monkeypatch):
    from histoxplaining.classifier import linear_probe
    monkeypatch.setenv('HX_CACHE', str(tmp_path/'cache'))
    store, calls = TileStore.create(tiles, tmp_path/'s.lmdb', size=32, val=.3), [0]
    class Counts(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(1))
        def forward(self, x): calls[0] += 1; return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1) * self.w
    a = linear_probe(store, net := Counts())
    first = calls[0]
    b = linear_probe(store, net)
    assert calls[0] - first < first and torch.equal(a.model.head.weight, b.model.head.weight)


def test_a_name_of_the_hub_with_local_weights(tmp_path):
    import timm
    # as foundation models have them: a name alone does not build the network
    options = dict(init_values=.5, embed_dim=64)
    model = timm.create_model('vit_tiny_patch16_224', num_classes=3, img_size=32, num_heads=2, depth=2,
        **options).eval()
    (tmp_path/'hub').mkdir()
    torch.save(model.state_dict(), tmp_path/'hub'/'pytorch_model.bin')
    about = dict(architecture='vit_tiny_patch16_224', model_args=options | dict(img_size=32, num_heads=2, depth=2),
        pretrained_cfg=dict(mean=[.7, .6, .7], std=[.2, .2, .2], input_size=[3, 32, 32]))
    (tmp_path/'hub'/'config.json').write_text(json.dumps(about))
    clf = Classifier.load('hf-hub:somebody/foundation', weights=tmp_path/'hub'/'pytorch_model.bin',
        classes=('a', 'b', 'c'))
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    want = model(((x + 1) / 2 - torch.tensor([.7, .6, .7])[:, None, None]) / .2)
    assert clf.size == 32 and torch.allclose(clf(x), want, atol=1e-4)
    clf.save(tmp_path/'c.safetensors')
    assert torch.allclose(Classifier.load(tmp_path/'c.safetensors')(x), want, atol=1e-4)
    net = timm.create_model('resnet10t', num_classes=2)
    torch.save(net.state_dict(), tmp_path/'r.pth')
    assert Classifier.load('hf-hub:timm/resnet10t.c3_in1k', weights=tmp_path/'r.pth',
        classes=('a', 'b')).arch == 'resnet10t'
    with pytest.raises(HxError, match='keep its config.json beside it'):
        Classifier.load('hf-hub:somebody/secret', weights=tmp_path/'r.pth', classes=('a', 'b'))


def test_a_program_is_tried_on_labelled_tiles_before_it_is_believed(tiles, tmp_path, capsys):
    from histoxplaining.cli import given_classifier
    def told(classes=None, size=None, norm=None):
        return dict(classifier_classes=classes, classifier_size=size,
            classifier_norm=norm)
    store = TileStore.create(tiles, tmp_path/'s.lmdb', size=32)
    net = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 2))
    x, y = store.tensors(range(len(store)))
    x = net[:2](x)                                                     # least squares on 8 x 8 pixels
    w = torch.linalg.solve(x.T @ x + torch.eye(192), x.T @ (F.one_hot(y, 2) - .5))
    net[2].load_state_dict(dict(weight=w.T, bias=torch.zeros(2)))
    torch.jit.trace(net, torch.zeros(1, 3, 32, 32)).save(str(tmp_path/'good.pt'))
    # the other way round: told, with both assignments
    net[2].load_state_dict(dict(weight=-w.T, bias=torch.zeros(2)))
    torch.jit.trace(net, torch.zeros(1, 3, 32, 32)).save(str(tmp_path/'turned.pt'))
    with pytest.raises(HxError, match='in another order'): given_classifier(tmp_path/'turned.pt', store=store)
    net[2].load_state_dict(dict(weight=torch.zeros(2, 192), bias=torch.tensor([0., 1.])))
    torch.jit.trace(net, torch.zeros(1, 3, 32, 32)).save(str(tmp_path/'bad.pt'))
    with pytest.raises(HxError, match='as chance would be: say what it is with --classifier_classes'):
        given_classifier(tmp_path/'bad.pt', store=store)
    # what is said is believed
    assert given_classifier(tmp_path/'bad.pt', told('benign,tumour', 32, 'imagenet'), store).size == 32
    clf = given_classifier(tmp_path/'good.pt', told(norm='.5,.5,.5/.5,.5,.5'), store)
    assert clf.classes == store.classes and clf.mean.flatten().tolist() == [.5] * 3
    assert 'taken for benign, tumour at 32 px' in capsys.readouterr().out
    with pytest.raises(HxError, match='give --classifier_classes and --classifier_size'):
        given_classifier(tmp_path/'good.pt')
    with pytest.raises(HxError, match='--classifier_norm half: expected'):
        given_classifier(tmp_path/'good.pt', told(norm='half'), store)


def test_what_a_model_drew_is_never_shown_as_an_original(tmp_path):
    "Encoded tiles and samples stand in for pictures where there are none: both are marked as generated in the report."
    import re
    from histoxplaining.cli import hx_explain
    for what in (dict(encoded=4), dict(seeds=4)):
        hx_explain('colon-64', None, out=str(tmp_path/'r.html'), frames=0, **what)
        html = re.sub('base64,[A-Za-z0-9+/=]+', '', (tmp_path/'r.html').read_text(encoding='utf-8'))
        first = [f for f in re.findall('<figure>.*?</figure>', html, re.S) if '>Original<' in f]
        assert len(first) == 4 and all('generated' in f for f in first)


def test_encoded_tiles_are_dealt_out_over_the_classes(colon):
    from histoxplaining.cli import _encoded
    pictures, names = _encoded(colon, 5)
    says = [colon.classes[k] for k in colon.reference.labels[[int(n.split()[-1]) for n in names]]]
    assert len(pictures) == 5 and [says.count(c) for c in colon.classes] == [3, 2]
