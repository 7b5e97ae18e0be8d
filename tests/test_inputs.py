"""Corrupt, truncated and wrongly labelled input ends in a message that names the file, and leaves what exists alone."""
import shutil, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from histoxplaining.files import HxError
from histoxplaining.classifier import Classifier
from histoxplaining.tiles import TileStore
from histoxplaining.training import TrainConfig, train


def hx(name, *args):
    "Run a console script as a shell would; returns (status, last line of stderr)."
    p = subprocess.run([Path(sys.executable).parent/name, *map(str, args)], capture_output=True, text=True)
    return p.returncode, p.stdout, p.stderr.strip().splitlines()[-1] if p.stderr.strip() else ''


@pytest.fixture
def folder(tiny, tmp_path):
    shutil.copytree(tiny/'tiles', tmp_path/'tiles')
    return tmp_path/'tiles'


def test_unreadable_pictures_are_named(folder, tmp_path):
    files = sorted((folder/'benign').iterdir())
    files[0].write_bytes(files[0].read_bytes()[:60])
    files[1].write_text('not a picture')
    status, out, err = hx('hx_tiles', folder, tmp_path/'s.lmdb', '--size', 16, '--on_error', 'raise')
    assert status == 2 and files[0].name in err, err
    assert not (tmp_path/'s.lmdb').exists()
    status, out, err = hx('hx_tiles', folder, tmp_path/'s.lmdb', '--size', 16)
    assert status == 0
    skipped = str(TileStore(tmp_path/'s.lmdb').manifest['skipped'])
    assert files[0].name in skipped and files[1].name in skipped and len(TileStore(tmp_path/'s.lmdb')) == 58


def test_wrong_class_names_are_named(folder, tmp_path):
    status, _, err = hx('hx_tiles', folder, tmp_path/'s.lmdb', '--classes', 'benign,tumor')
    assert status == 2 and 'tumor' in err
    for p in (folder/'tumour').iterdir(): p.unlink()
    status, _, err = hx('hx_tiles', folder, tmp_path/'s.lmdb', '--classes', 'benign,tumour')
    assert status == 2 and 'tumour' in err


def test_truncated_store_is_refused(tiny, tmp_path):
    shutil.copytree(tiny/'tiles.lmdb', tmp_path/'s.lmdb')
    data = tmp_path/'s.lmdb'/'data.mdb'
    data.write_bytes(data.read_bytes()[:data.stat().st_size // 2])
    status, _, err = hx('hx_train', tmp_path/'s.lmdb', '--arch', 'stylegan2', '--output_path', tmp_path/'run')
    assert status == 2 and 's.lmdb' in err, err


def test_classifier_of_other_classes_is_refused(tiny, tmp_path):
    shutil.copytree(tiny/'tiles', tmp_path/'tiles')
    (tmp_path/'tiles'/'tumour').rename(tmp_path/'tiles'/'adenoma')
    TileStore.create(tmp_path/'tiles', tmp_path/'s.lmdb', size=16)
    with pytest.raises(HxError, match='adenoma'):
        train(TrainConfig(data=str(tmp_path/'s.lmdb'), kimg=.016), tmp_path/'run',
            classifier=tiny/'classifier.safetensors', quiet=True)


def test_truncated_classifier_and_checkpoint_are_named(tiny, tmp_path):
    whole = (tiny/'classifier.safetensors').read_bytes()
    (tmp_path/'cut.safetensors').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(HxError, match='cut.safetensors'): Classifier.load(tmp_path/'cut.safetensors')
    torch.save({'nimg': 1}, tmp_path/'x.pt')
    (tmp_path/'x.pt').write_bytes((tmp_path/'x.pt').read_bytes()[:100])
    status, _, err = hx('hx_train', tiny/'tiles.lmdb', '--ckpt', tmp_path/'x.pt', '--arch', 'stylegan2')
    assert status == 2 and 'x.pt' in err


def test_an_explanation_of_a_broken_picture_is_refused(tiny, tmp_path):
    run = train(TrainConfig(data=str(tiny/'tiles.lmdb'), arch='autoencoder', kimg=.016, batch=8, channel_base=256,
        channel_max=16), tmp_path/'run', tiny/'classifier.safetensors', quiet=True)
    (tmp_path/'broken.png').write_bytes(b'\x89PNG\r\n')
    status, _, err = hx('hx_explain', run.path, tmp_path/'broken.png', '--out', tmp_path/'r.html')
    assert status == 2 and 'broken.png' in err and not (tmp_path/'r.html').exists()
    status, _, err = hx('hx_explain', run.path, '--target', 'stroma', '--out', tmp_path/'r.html')
    assert status == 2 and 'benign, tumour' in err


def test_real_tiles_become_a_store(shared, tmp_path):
    for k in ('healthy', 'adenocarcinoma'):
        (tmp_path/'src'/k).mkdir(parents=True)
        for f in sorted((shared/'data'/'colon'/k).iterdir())[:10]: shutil.copy(f, tmp_path/'src'/k)
    store = TileStore.create(tmp_path/'src', tmp_path/'s.lmdb', size=64, classes=['healthy', 'adenocarcinoma'], val=.2)
    assert len(store) == 20 and store.classes == ('healthy', 'adenocarcinoma') and store[0][0].shape == (64, 64, 3)
    assert 60 < np.mean([store[i][0].mean() for i in range(20)]) < 220       # tissue, not black or glass


def test_every_command_tells_its_version_and_speaks_of_its_own_options(tiny, tmp_path):
    import histoxplaining
    for name in ('hx_explain', 'hx_tiles', 'hx_study'):
        status, out, _ = hx(name, '--version')
        assert (status, out.strip()) == (0, f'histoxplaining {histoxplaining.__version__}')
    status, _, err = hx('hx_tiles', tiny/'tiles', tiny/'tiles.lmdb')
    assert status == 2 and 'give --overwrite' in err and 'overwrite=True' not in err
