"""The explorer in a real JupyterLab in a real browser: the slider moves, and picture, probability and curve follow."""
import os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import nbformat, pytest
from histoxplaining.training import TrainConfig, train

SECONDS = 60_000   # of patience, in milliseconds: on a busy machine a kernel takes a while to start


@pytest.fixture(scope='module')
def chromium():
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    found = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)
    with api.sync_playwright() as p:
        try: browser = p.chromium.launch(executable_path=found, args=['--no-sandbox'])
        except api.Error as e: pytest.skip(f'no Chromium here ({str(e).splitlines()[0]}); playwright install chromium')
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def lab(tiny, tmp_path_factory):
    "A JupyterLab with one notebook that shows an explorer: its address."
    pytest.importorskip('jupyterlab', reason='jupyterlab is not installed')
    root = tmp_path_factory.mktemp('lab')
    train(TrainConfig(data=str(tiny/'tiles.lmdb'), arch='autoencoder', kimg=.016, batch=8, channel_base=256, channel_max=16), root/'run', tiny/'classifier.safetensors', quiet=True)
    cell = nbformat.v4.new_code_cell(f'from histoxplaining.explainer import Explainer\nfrom histoxplaining.explorer import Explorer\ne = Explorer(Explainer.from_run({str(root/"run")!r}), hold=(), p=.5)\n'
        'next(i for i in range(len(e.tiles)) if e.select(tile=i) and e.slider.max > 1)   # one that has a path\ne')
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))), root/'explorer.ipynb')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = os.environ | dict(JUPYTER_CONFIG_DIR=str(root/'config'), JUPYTERLAB_SETTINGS_DIR=str(root/'settings'), JUPYTERLAB_WORKSPACES_DIR=str(root/'workspaces'), JUPYTER_RUNTIME_DIR=str(root/'runtime'), OMP_NUM_THREADS='1')
    with open(root/'log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0', f'--ServerApp.root_dir={root}',
            '--IdentityProvider.token=tissue', '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'], stdout=log, stderr=log, env=env)
    try:
        for _ in range(240):
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token=tissue', timeout=1); break
            except OSError:
                assert server.poll() is None, (root/'log').read_text()[-2000:]
                time.sleep(.25)
        yield f'http://127.0.0.1:{port}/doc/tree/explorer.ipynb?token=tissue'
    finally:
        server.terminate(); server.wait(20)


def test_the_picture_follows_the_slider(chromium, lab):
    page = chromium.new_page(viewport=dict(width=1400, height=950))
    page.set_default_timeout(SECONDS)
    page.goto(lab)
    page.locator('.jp-CodeCell .cm-content').first.click()
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
    page.keyboard.press('Shift+Enter')
    edited, size = page.locator('.hx-explorer img').nth(2), page.get_by_text('size of the edit').first
    edited.wait_for()
    handle = page.locator('.hx-explorer .noUi-handle').last
    see = lambda: (edited.evaluate('''async i => Array.from(new Uint8Array(await (await fetch(i.src)).arrayBuffer())).join()'''), size.inner_text())
    before = see()
    handle.focus()
    for _ in range(12): page.keyboard.press('ArrowLeft')
    page.wait_for_function('old => !document.body.innerText.includes(old)', arg=before[1])
    page.wait_for_timeout(300)
    after = see()
    assert before[1] != after[1] and before[0] != after[0]     # another size, other bytes
    assert edited.bounding_box()['width'] > 200
    page.get_by_role('button', name='blink').click()
    page.wait_for_timeout(500)
    assert see()[0] != after[0]                                # the reconstruction, in the same place
    page.close()


def test_the_report_compares_sorts_and_fetches_nothing(chromium, tmp_path):
    "From file://, with the network off: slider, map, divider, blink, filter and order."
    from histoxplaining.cli import hx_demo
    hx_demo(str(tmp_path))
    context = chromium.new_context(viewport=dict(width=1400, height=1000), offline=True)
    page, errors, asked = context.new_page(), [], []
    page.on('console', lambda m: m.type == 'error' and errors.append(m.text))
    page.on('pageerror', lambda e: errors.append(str(e)))
    page.on('request', lambda r: asked.append(r.url) if not r.url.startswith(('file:', 'data:')) else None)
    page.goto((tmp_path/'report.html').as_uri())
    card = page.locator('.case').first
    see = lambda: tuple(card.locator(q).get_attribute('src') for q in ('.still >> nth=2', '.map')) + (card.locator('.slide output').inner_text(),)
    before = see()
    card.locator('.slide input').focus()
    for _ in range(4): page.keyboard.press('ArrowLeft')
    assert all(a != b for a, b in zip(before, see()))                      # picture, map and size follow
    cut = lambda: card.locator('.cuts').evaluate("e => e.style.getPropertyValue('--cut')")
    card.locator('.compare input').fill('40')
    assert cut() == '40%'
    blink = card.get_by_role('button', name='Blink')
    blink.hover(); page.mouse.down()
    assert cut() == '100%'
    page.mouse.up()
    assert cut() == '40%'
    page.locator('.which').select_option(label='from healthy')
    shown = page.locator('.case:visible')
    assert 0 < shown.count() < page.locator('.case').count() and all(shown.nth(i).get_attribute('data-from') == 'healthy' for i in range(shown.count()))
    page.locator('.order').select_option('size')
    sizes = [float(shown.nth(i).get_attribute('data-size')) for i in range(shown.count())]
    assert sizes == sorted(sizes)
    for width in (900, 400):
        page.set_viewport_size(dict(width=width, height=900))
        assert page.evaluate('document.documentElement.scrollWidth') <= width          # nothing is cut off
    assert not errors and not asked
    context.close()
