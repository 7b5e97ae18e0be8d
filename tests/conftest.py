"""Small synthetic data that several tests share."""
import os
from pathlib import Path
import pytest
from histoxplaining.classifier import train_classifier
from histoxplaining.synthetic import write_folder
from histoxplaining.tiles import TileStore


def pytest_addoption(parser): parser.addoption('--slow', action='store_true', help='also run what takes minutes')

def pytest_configure(config): config.addinivalue_line('markers', 'slow: takes minutes; run with --slow')

def pytest_collection_modifyitems(config, items):
    if not config.getoption('--slow'):
        for item in items:
            if 'slow' in item.keywords: item.add_marker(pytest.mark.skip(reason='takes minutes; run with --slow'))


@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    "A folder of 60 tiles at 16 px, their store and a classifier."
    root = tmp_path_factory.mktemp('tiny')
    write_folder(root/'tiles', 60, 16, seed=0)
    store = TileStore.create(root/'tiles', root/'tiles.lmdb', size=16, val=.2)
    train_classifier(store, arch='resnet10t', pretrained=False, epochs=1).save(root/'classifier.safetensors')
    return root


@pytest.fixture(scope='session')
def shared():
    "The folder with real tiles, or a skip that says so."
    p = Path(os.environ.get('HX_SHARED', Path(__file__).parent.parent.parent/'shared'))
    if not (p/'data'/'colon').exists(): pytest.skip(f'no real tiles at {p} (set HX_SHARED)')
    return p
