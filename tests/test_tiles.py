"""A tile store from bad input, from an interrupted build, on a full disk, in worker processes: each ends in the tiles
or in a message, never in between."""

import io, os, random, resource, shutil, signal, stat, struct, subprocess, sys, time, zipfile, zlib
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from histoxplaining.files import DataError
from histoxplaining.images import read_image, write_png
from histoxplaining.synthetic import write_folder
from histoxplaining.tiles import TileStore


@pytest.fixture
def folder(tiny, tmp_path):
    shutil.copytree(tiny/'tiles', tmp_path/'tiles')
    return tmp_path/'tiles'


def bomb(side=60_000):
    "A PNG of a few hundred bytes whose header promises side x side pixels."
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)) + chunk(b'IDAT',
        zlib.compress(bytes(1000))) + chunk(b'IEND', b'')


def png(mode='RGB'):
    b = io.BytesIO()
    Image.new(mode, (16, 16), {'L': 90, 'RGB': (200, 120, 160), 'RGBA': (200, 120, 160, 255)}[mode]).save(b, 'PNG')
    return b.getvalue()


def refused(source, tmp_path, **kw):
    "The message; nothing may be left of the attempt."
    with pytest.raises(DataError) as e: TileStore.create(source, tmp_path/'s.lmdb', size=16, **kw)
    assert not list(tmp_path.glob('s.lmdb*'))
    return str(e.value)


# ---- single pictures: skipped and listed, or the end with on_error='raise'

PICTURES = {'cut.png': (png()[:-30], 'cut.png: not a readable'),
    'words.jpg': (b'no picture', 'words.jpg: not a readable'), 'empty.tif': (b'', 'empty.tif: not a readable'),
    'bomb.png': (bomb(), 'bomb.png: refused: Image size (3600000000 pixels)'),
        'big.png': (bomb(9000), 'big.png: 9000x9000 pixels, more than'),
        'scan.gif': (b'BM', 'scan.gif: .gif is not read'), 'a.svs': (png(), 'a.svs: .svs is not read'),
    'gif.png': (b'GIF89a' + bytes(40), 'gif.png: not a readable')}

@pytest.mark.parametrize('name', PICTURES)
def test_a_bad_picture_is_skipped_counted_and_listed(folder, tmp_path, name):
    raw, says = PICTURES[name]
    (folder/'benign'/name).write_bytes(raw)
    assert says in refused(folder, tmp_path, on_error='raise')
    store = TileStore.create(folder, tmp_path/'s.lmdb', size=16)
    [(which, why)] = store.manifest['skipped']
    assert which == f'benign/{name}' and says in why and len(store) == 60

def test_a_bomb_is_refused_without_being_decoded(tmp_path):
    (tmp_path/'bomb.png').write_bytes(bomb(13_300))                  # 0.7 GB with all its copies, if it were
    code = ('import resource, sys; from histoxplaining.images import read_image\n'
        'resource.setrlimit(resource.RLIMIT_AS, (n := int(open("/proc/self/statm").read().split()[0]) * 4096 + 2**28, '
            'n))\n'
        'try: read_image(sys.argv[1])\nexcept ValueError as e: print(e)')
    if not Path('/proc/self/statm').exists(): pytest.skip('no /proc to measure memory with')
    out = subprocess.run([sys.executable, '-c', code, tmp_path/'bomb.png'], capture_output=True, text=True)
    assert '13300x13300 pixels' in out.stdout, out.stderr


# ---- what is wrong with the collection

def test_a_class_without_a_picture_is_named(folder, tmp_path):
    (folder/'normal').mkdir()
    assert 'normal: no pictures' in refused(folder, tmp_path)
    (folder/'normal'/'a.png').write_bytes(png()[:40])
    assert 'normal: none of its 1 pictures can be used; the first: normal/a.png' in refused(folder, tmp_path)
    assert "no class 'adenoma'; found benign, normal, tumour" in refused(folder, tmp_path,
        classes=['benign', 'adenoma'])

@pytest.mark.parametrize('mode, n', [('L', 1), ('RGBA', 4)])
def test_mixed_channels_are_named(folder, tmp_path, mode, n):
    (folder/'tumour'/'z.png').write_bytes(png(mode))
    assert f'tumour/z.png has {n} channels, benign/' in (m := refused(folder, tmp_path)) and 'has 3' in m

@pytest.mark.parametrize('mode', ['L', 'RGBA', 'RGB'])
def test_one_kind_of_channels_is_fine(tmp_path, mode):
    for c in 'ab':
        (tmp_path/'in'/c).mkdir(parents=True)
        for i in range(3): (tmp_path/'in'/c/f'{i}.png').write_bytes(png(mode))
    img, _ = TileStore.create(tmp_path/'in', tmp_path/'s.lmdb', size=16)[0]
    assert img.shape == (16, 16, 3) and img[0, 0].tolist() == ([90] * 3 if mode == 'L' else [200, 120, 160])

def test_mixed_sizes_with_mpp_are_named(folder, tmp_path):
    write_png(folder/'tumour'/'z.png', np.full((32, 32, 3), 150, np.uint8))
    assert 'mpp=0.5, but tumour/z.png has 32 pixels' in refused(folder, tmp_path, mpp=.5)
    assert len(TileStore.create(folder, tmp_path/'s.lmdb', size=16)) == 61

def table(folder, text):
    (folder/'t.csv').write_text(text)
    return folder/'t.csv'

@pytest.mark.parametrize('text, says', [
    ('file,kind\na.png,benign\n', 't.csv: expected the columns path,label'),
    ('path label\na.png benign\n',
        't.csv: expected the columns path,label and perhaps group in the first line, separated by commas, semicolons '
        'or tabs; found path label'),
    ('path,file,label\na.png,a.png,benign\n', 't.csv: several columns could be path'),
    ('path,label\n' + 200_000 * 'a' + ',benign\n', 't.csv, line 2: not a row of a CSV table'),
    ('path,label\n', 't.csv: has a header but no rows'),
    ('path,label\na.png,\n', 't.csv, line 2: expected a path and a label; found a.png, no label'),
    ('path,label\na.png,benign\na.png,tumour\n', 't.csv, line 3: a.png is listed twice (line 2)'),
    ('path,label,group\na.png,benign,1\nb.png,tumour,\n', 't.csv, line 3: b.png has no group'),
    ('path,label\na.png,benign\nb.png,tumor\n', "t.csv, line 3: b.png has the label 'tumor', expected one of benign")])
def test_a_bad_table_is_named_with_its_line(folder, tmp_path, text, says):
    assert says in refused(table(folder, text), tmp_path, classes=['benign'])

def test_a_table_that_names_a_missing_file(folder, tmp_path):
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*.png'))
    t = table(folder, '\n'.join(['path,label', *(f'{f},{f.split("/")[0]}' for f in files), 'benign/gone.png,benign']))
    assert 'benign/gone.png: No such file' in refused(t, tmp_path, on_error='raise')
    assert TileStore.create(t, tmp_path/'s.lmdb', size=16).manifest['skipped'] == [['benign/gone.png',
        'benign/gone.png: No such file or directory']]

def test_a_table_that_is_not_text(folder, tmp_path):
    (folder/'t.csv').write_bytes('path,label\nä.png,gutartig\n'.encode('latin1'))
    assert 't.csv: not UTF-8' in refused(folder/'t.csv', tmp_path)

@pytest.mark.parametrize('name, says, data, mode', [
    ('../benign/a.png', 'odd path', b'x', 0), ('/benign/a.png', 'odd path', b'x', 0),
        ('C:/benign/a.png', 'odd path', b'x', 0), ('benign\\..\\a.png', 'odd path', b'x', 0),
    ('benign/a.png', 'is a link', b'/etc/passwd', stat.S_IFLNK | 0o777),
        ('benign/a.png', 'like a decompression bomb', bytes(20_000_000), 0)])
def test_a_hostile_zip_is_refused_whole(folder, tmp_path, name, says, data, mode):
    with zipfile.ZipFile(tmp_path/'t.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        for p in sorted(folder.rglob('*.png')): z.write(p, p.relative_to(folder).as_posix())
        m = zipfile.ZipInfo(name)
        m.compress_type, m.external_attr = zipfile.ZIP_DEFLATED, mode << 16
        z.writestr(m, data)
    m = refused(tmp_path/'t.zip', tmp_path)
    assert 't.zip: refused: its member' in m and says in m, m

def test_a_damaged_zip_is_named(folder, tmp_path):
    with zipfile.ZipFile(tmp_path/'t.zip', 'w') as z:
        for p in sorted(folder.rglob('*.png')): z.write(p, p.relative_to(folder).as_posix())
    raw = (tmp_path/'t.zip').read_bytes()
    (tmp_path/'t.zip').write_bytes(raw[:-30])
    assert 't.zip: not a readable zip file' in refused(tmp_path/'t.zip', tmp_path)
    spoilt = bytearray(raw); spoilt[200:204] = b'\0\0\0\0'           # inside the first picture: its checksum differs
    (tmp_path/'t.zip').write_bytes(spoilt)
    store = TileStore.create(tmp_path/'t.zip', tmp_path/'s.lmdb', size=16)
    assert len(store) == 59 and 'damaged in t.zip' in store.manifest['skipped'][0][1]

def test_groups_that_cannot_be_divided(folder, tmp_path):
    rows = [f'{p.relative_to(folder)},{p.parent.name},{p.parent.name}' for p in sorted(folder.rglob('*.png'))]
    assert 'benign: its' in (m := refused(table(folder, '\n'.join(['path,label,group', *rows])),
        tmp_path)) and 'lie in 1 group(s)' in m
    (folder/'t.csv').unlink()                                       # a table inside a folder is taken for its labels
    assert "split_by='group', but no groups are known" in refused(folder, tmp_path, split_by='group')


# ---- a build that does not come to its end

BUILD = ('import sys; from histoxplaining.tiles import TileStore; print("go", flush=True)\n'
    'TileStore.create(sys.argv[1], sys.argv[2], size=32, workers=1)')

def test_a_killed_build_is_complete_resumable_or_refused(tmp_path):
    write_folder(tmp_path/'tiles', 700, 32, seed=0)
    begin = time.time()
    whole = TileStore.create(tmp_path/'tiles', tmp_path/'whole.lmdb', size=32, workers=1)
    took, rng, seen = time.time() - begin, random.Random(0), set()
    for k in range(10):
        path = tmp_path/f'{k}.lmdb'
        p = subprocess.Popen([sys.executable, '-c', BUILD, tmp_path/'tiles', path], stdout=subprocess.PIPE, text=True)
        p.stdout.readline()
        time.sleep(rng.uniform(0, 1.3 * took) if k else 0)
        p.kill(); p.wait()
        try: state = 'complete' if len(TileStore(path)) == 700 else 'half-read'
        except DataError as e:
            state = 'unfinished'
            assert 'no such tile store' in str(e)                        # refused to readers
        seen.add(state)
        assert state != 'half-read'
        if state == 'unfinished':
            partial = path.with_name(f'{k}.lmdb.partial')
            if partial.exists() and (partial/'data.mdb').stat().st_size > 2**16:
                with pytest.raises(DataError, match='other settings'): TileStore.create(tmp_path/'tiles', path, size=16)
            TileStore.create(tmp_path/'tiles', path, size=32)
        store = TileStore(path)
        assert store.hash == whole.hash and store.manifest == whole.manifest
        assert all((store[i][0] == whole[i][0]).all() for i in range(0, 700, 7))
        assert (store.moments == whole.moments).all() and not list(tmp_path.glob('*.partial'))
    assert 'unfinished' in seen

def test_kill_while_replacing_loses_nothing(tiny, tmp_path):
    old = TileStore.create(tiny/'tiles', tmp_path/'s.lmdb', size=16)
    (tmp_path/'s.lmdb').rename(tmp_path/'s.lmdb.old')                    # the moment between two renames
    with pytest.raises(DataError, match='s.lmdb.old.*repeat'): TileStore(tmp_path/'s.lmdb')
    with pytest.raises(DataError, match='exists already'): TileStore.create(tiny/'tiles', tmp_path/'s.lmdb', size=16)
    assert TileStore(tmp_path/'s.lmdb').hash == old.hash                 # it was put back

def test_a_full_disk_leaves_what_was_there(tiny, tmp_path):
    write_folder(tmp_path/'tiles', 300, 64, seed=1)
    TileStore.create(tiny/'tiles', tmp_path/'s.lmdb', size=16)
    before = (tmp_path/'s.lmdb'/'data.mdb').read_bytes()
    code = ('import resource, sys; from histoxplaining.tiles import TileStore\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n'
        'try: TileStore.create(sys.argv[1], sys.argv[2], size=64, overwrite=True)\nexcept ValueError as e: print(e)')
    out = subprocess.run([sys.executable, '-c', code, tmp_path/'tiles', tmp_path/'s.lmdb'], capture_output=True,
        text=True)
    assert 's.lmdb: cannot be written' in out.stdout and 'Nothing that was there is lost' in out.stdout, out
    assert (tmp_path/'s.lmdb'/'data.mdb').read_bytes() == before and not list(tmp_path.glob('*.partial'))

def test_two_builders_at_once(tmp_path):
    write_folder(tmp_path/'tiles', 400, 32, seed=0)
    p = subprocess.Popen([sys.executable, '-c', BUILD, tmp_path/'tiles', tmp_path/'s.lmdb'], stdout=subprocess.PIPE,
        text=True)
    p.stdout.readline()
    while p.poll() is None and not (tmp_path/'s.lmdb.partial'/'data.mdb').exists(): time.sleep(.002)
    os.kill(p.pid, signal.SIGSTOP)                                       # it holds its lock while it sleeps
    try:
        with pytest.raises(DataError, match='another process is building'):
            TileStore.create(tmp_path/'tiles', tmp_path/'s.lmdb', size=32)
    finally: os.kill(p.pid, signal.SIGCONT)
    assert p.wait() == 0 and len(TileStore(tmp_path/'s.lmdb')) == 400


# ---- reading

@pytest.mark.parametrize('share', [.2, .6, .95])
def test_a_truncated_store_is_refused(tiny, tmp_path, share):
    shutil.copytree(tiny/'tiles.lmdb', tmp_path/'s.lmdb')
    data = tmp_path/'s.lmdb'/'data.mdb'
    os.truncate(data, int(share * data.stat().st_size))
    with pytest.raises(DataError, match='s.lmdb'): TileStore(tmp_path/'s.lmdb')

@pytest.mark.parametrize('start', ['fork', 'spawn'])
def test_workers_read_the_same_tiles(tiny, start):
    store = TileStore(tiny/'tiles.lmdb')
    store[0]                                                             # the parent has it open
    loader = torch.utils.data.DataLoader(store, batch_size=20, num_workers=2, multiprocessing_context=start)
    x, y = (torch.cat(v) for v in zip(*loader))
    assert (y.numpy() == store.labels).all() and all((x[i].numpy() == store[i][0]).all() for i in range(len(store)))

def test_a_large_image_becomes_tiles_where_there_is_tissue(tiny, tmp_path):
    tile = read_image(next((tiny/'tiles'/'benign').iterdir()))
    slide = np.full((16 * 5 + 7, 16 * 6 + 3, 3), 243, np.uint8)
    for r, c in [(0, 0), (2, 3), (4, 5)]: slide[16 * r:16 * r + 16, 16 * c:16 * c + 16] = tile
    write_png(tmp_path/'slide.png', slide)
    store = TileStore.create(tmp_path/'slide.png', tmp_path/'s.lmdb', size=16, tile=16, mpp=.25)
    assert store.names == ['slide.png@0,0', 'slide.png@48,32',
        'slide.png@80,64'] and store.manifest['glass'] == 27 and store.mpp == .25
    assert all((store[i][0] == tile).all() for i in range(3))


def test_compact_stores_say_what_they_lost(tmp_path):
    write_folder(tmp_path/'t', 60, 64, seed=0)
    stores = {e: TileStore.create(tmp_path/'t', tmp_path/f'{e}.lmdb', size=64, val=.2, encoding=e)
        for e in ('png', 'webp', 'jpeg')}
    bytes_of = {e: (s.path/'data.mdb').stat().st_size for e, s in stores.items()}
    assert bytes_of['webp'] < .85 * bytes_of['png'] and bytes_of['jpeg'] < .85 * bytes_of['png']
    assert all((stores['webp'][i][0] == stores['png'][i][0]).all() for i in range(len(stores['png'])))
    off = np.mean([np.abs(stores['jpeg'][i][0].astype(int) - stores['png'][i][0]).mean()
        for i in range(len(stores['png']))])
    assert 0 < off < 4 and stores['jpeg'].manifest['loss'] == pytest.approx(off,
        abs=.01) and stores['webp'].manifest['loss'] == 0
    with pytest.raises(DataError, match="encoding: expected png, webp, jpeg, found 'gif'"):
        TileStore.create(tmp_path/'t', tmp_path/'x.lmdb', size=64, encoding='gif')
