"""The explorer in a real JupyterLab in a real browser: the slider moves, and picture, probability and curve follow."""
import contextlib, os, re, shutil, socket, subprocess, sys, time, urllib.request
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


@contextlib.contextmanager
def jupyterlab(root, code):
    "A JupyterLab with one notebook of one cell: its address."
    pytest.importorskip('jupyterlab', reason='jupyterlab is not installed')
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)],
        metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))),
        root/'explorer.ipynb')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = os.environ | dict(JUPYTER_CONFIG_DIR=str(root/'config'), JUPYTERLAB_SETTINGS_DIR=str(root/'settings'),
        JUPYTERLAB_WORKSPACES_DIR=str(root/'workspaces'), JUPYTER_RUNTIME_DIR=str(root/'runtime'), OMP_NUM_THREADS='1')
    with open(root/'log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1',
            f'--port={port}', '--ServerApp.port_retries=0', f'--ServerApp.root_dir={root}',
            '--IdentityProvider.token=tissue', '--LabApp.news_url=None',
                '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'], stdout=log, stderr=log, env=env)
    try:
        for _ in range(240):
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token=tissue', timeout=1); break
            except OSError:
                assert server.poll() is None, (root/'log').read_text()[-2000:]
                time.sleep(.25)
        yield f'http://127.0.0.1:{port}/doc/tree/explorer.ipynb?token=tissue'
    finally:
        server.terminate(); server.wait(20)


def run_cell(page):
    "Run the one cell of the notebook."
    page.locator('.jp-CodeCell .cm-content').first.click()
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
    page.keyboard.press('Shift+Enter')


@pytest.fixture(scope='module')
def lab(tiny, tmp_path_factory):
    "A notebook with an explorer of a model that has no translator."
    root = tmp_path_factory.mktemp('lab')
    train(TrainConfig(data=str(tiny/'tiles.lmdb'), arch='autoencoder', kimg=.016, batch=8, channel_base=256,
        channel_max=16), root/'run', tiny/'classifier.safetensors', quiet=True)
    with jupyterlab(root, 'from histoxplaining import Explainer, Explorer\n'
        f'e = Explorer(Explainer.from_run({str(root/"run")!r}), hold=(), p=.5)\n'
        'next(i for i in range(len(e.tiles)) if e.select(tile=i) and e.slider.max > 1)   # one that has a path\n'
        'e') as url: yield url


def test_the_picture_follows_the_slider(chromium, lab):
    page = chromium.new_page(viewport=dict(width=1400, height=950))
    page.set_default_timeout(SECONDS)
    page.goto(lab)
    run_cell(page)
    edited, size = page.locator('.hx-explorer img').nth(2), page.get_by_text('size of the edit').first
    edited.wait_for()
    handle = page.locator('.hx-explorer .noUi-handle').nth(1)
    def see():
        return (
        edited.evaluate('''async i => Array.from(new Uint8Array(await (await fetch(i.src)).arrayBuffer())).join()'''),
            size.inner_text(),
    )
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
    def see():
        return tuple(card.locator(q).get_attribute('src')
            for q in ('.still >> nth=2', '.map')) + (card.locator('.slide output').inner_text(),)
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
    assert 0 < shown.count() < page.locator('.case').count()
    assert all(shown.nth(i).get_attribute('data-from') == 'healthy' for i in range(shown.count()))
    page.locator('.order').select_option('size')
    sizes = [float(shown.nth(i).get_attribute('data-size')) for i in range(shown.count())]
    assert sizes == sorted(sizes)
    for width in (900, 400):
        page.set_viewport_size(dict(width=width, height=900))
        assert page.evaluate('document.documentElement.scrollWidth') <= width          # nothing is cut off
    assert not errors and not asked
    context.close()


SERIOUS = ('serious', 'critical')

def wrong_for_some(page):
    "What axe finds serious: readers with a keyboard, a screen reader or weak eyes would not get through."
    axe = pytest.importorskip('axe_playwright_python.sync_playwright', reason='axe-playwright-python is not installed')
    found = axe.Axe().run(page).response['violations']
    return [(v['id'], v['nodes'][0]['html'][:120]) for v in found if v['impact'] in SERIOUS]


def test_axe_finds_nothing_serious_in_the_report(chromium, tmp_path):
    from histoxplaining.cli import hx_explain
    hx_explain('colon-64', None, seeds=6, alternatives=2, out=str(tmp_path/'report.html'))
    for scheme in ('light', 'dark'):
        page = chromium.new_page(viewport=dict(width=1400, height=1000), color_scheme=scheme)
        page.goto((tmp_path/'report.html').as_uri())
        assert page.locator('.strip figure').count() >= 6 and page.get_by_text('Other answers').first.is_visible()
        assert not wrong_for_some(page)
        page.close()


def test_a_study_from_the_first_to_the_last_question(chromium, tmp_path):
    "From file://, with the network off and by keyboard; the answers are analysed."
    from histoxplaining.cli import hx_study
    from histoxplaining.explainer import Code, Explainer
    from histoxplaining.images import write_png
    from histoxplaining.study import analyse, read_answers
    ex = Explainer.from_pretrained('colon-64')
    for s, pic in enumerate(ex.render(ex.sample(range(500, 530)))):
        write_png(tmp_path/'tiles'/f'{s}.png', pic)
    hx_study('colon-64', [str(tmp_path/'tiles')], readers=2, out=str(tmp_path/'study'), pairs=4, decisions=3, shown=2)
    context = chromium.new_context(viewport=dict(width=1100, height=760), offline=True, accept_downloads=True)
    page, errors = context.new_page(), []
    page.on('console', lambda m: m.type == 'error' and errors.append(m.text))
    page.on('pageerror', lambda e: errors.append(str(e)))
    page.goto((tmp_path/'study'/'reader_01.html').as_uri())
    assert not wrong_for_some(page)
    asked = []
    for _ in range(40):
        head = page.locator('h1').inner_text()
        if head.startswith('Thank'): break
        asked.append(head)
        if 'real tissue' in head or 'this tile' in head: page.keyboard.press('1')
        elif head.startswith('The classifier says'):
            if len(asked) == 1 + asked.index(head):
                assert page.get_by_text('Go on').is_disabled() and not wrong_for_some(page)
            for name, v in (('useful', 4), ('trust', 2)): page.locator(f'input[name={name}][value="{v}"]').check()
            page.get_by_text('Go on').click()
        else: page.keyboard.press('Enter')
    assert sum('real tissue' in a for a in asked) == 4 and sum('this tile' in a for a in asked) == 6
    with page.expect_download() as got: page.get_by_text('Save the answers').click()
    got.value.save_as(tmp_path/'answers.json')
    found = analyse(*read_answers([tmp_path/'study'/'key.json', tmp_path/'answers.json']), draws=50)
    assert found['useful']['value'] == 4 and found['trust']['value'] == 2 and found['real or generated']['n'] == 4
    assert not errors
    context.close()


@pytest.fixture(scope='module', params=['hx_explore', 'JupyterLab'])
def application(request, tmp_path_factory):
    "The explorer of the packaged model, as a page of its own and in JupyterLab: where it is, its address, its folder."
    root = tmp_path_factory.mktemp('reader')
    if request.param == 'JupyterLab':
        with jupyterlab(root, 'from histoxplaining import Explainer, Explorer\n'
            "Explorer(Explainer.from_pretrained('colon-64'))") as url: yield request.param, url, root
        return
    pytest.importorskip('voila', reason='voila is not installed')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    server = subprocess.Popen([Path(sys.executable).with_name('hx_explore'), 'colon-64', '--no_browser',
        '--port', str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root)
    yield request.param, server.stdout.readline().split()[0], root
    server.terminate()
    assert server.wait(30) == 0


def picture(page, k):
    "Bytes of the k-th picture of the explorer."
    return page.locator('.hx-explorer img').nth(k).evaluate('async i => Array.from(new Uint8Array(await (await '
        'fetch(i.src)).arrayBuffer())).join()')


@pytest.fixture
def page(chromium, application, tmp_path):
    "The explorer, with a picture of the reader's own."
    from histoxplaining.synthetic import synthetic_tiles
    from histoxplaining.images import write_png
    page = chromium.new_page(viewport=dict(width=1400, height=900))
    page.set_default_timeout(SECONDS)
    asked = []
    page.on('request', lambda r: asked.append(r.url))
    errors = []
    page.on('console', lambda m: errors.append(m.text) if m.type == 'error' else None)
    page.on('pageerror', lambda e: errors.append(str(e)))
    where, url, page.folder = application
    page.goto(url)
    if where == 'JupyterLab': run_cell(page)
    page.locator('.hx-explorer img').first.wait_for()
    page.get_by_text('makes it say').wait_for()
    before = picture(page, 0)
    write_png(tmp_path/'mine.png', synthetic_tiles(2, 64, seed=1)[0][0])
    with page.expect_file_chooser() as chooser: page.get_by_text('pictures (0)').click()
    chooser.value.set_files([tmp_path/'mine.png'])
    page.get_by_text('Original · mine.png').wait_for()
    page.wait_for_timeout(300)
    assert picture(page, 0) != before
    page.asked = asked
    yield page
    assert not page.get_by_text('Traceback').count() and errors == []
    page.close()


CHANGED = "([k, old]) => document.querySelectorAll('.hx-compare img')[k].getAttribute('src') !== old"


def test_the_explorer_as_a_page_of_its_own(page):
    mine, see = picture(page, 0), lambda k: page.locator('.hx-compare img').nth(k).get_attribute('src')
    points, late = page.locator('.hx-map circle'), pytest.importorskip('playwright.sync_api').TimeoutError
    for k in range(43, points.count(), 7):                               # until one has several answers
        points.nth(k).click(force=True)                                  # a point of the map: another tile
        page.get_by_text(re.compile(r'^Encoded tile \d')).wait_for()      # not the caption of the map
        page.wait_for_timeout(500)
        assert picture(page, 0) != mine and see(0) != see(1)
        page.get_by_role('button', name='alternatives').click()
        try: page.get_by_text('keys 1 to').wait_for(timeout=10_000)
        except late: continue
        break
    else: pytest.fail('no point of the map with several answers')
    page.wait_for_timeout(300)
    end = see(1)
    page.locator('.hx-compare').focus()
    page.keyboard.press('2')
    page.wait_for_function(CHANGED, arg=[1, end])
    other = see(1)                                                       # another answer
    page.keyboard.press('ArrowLeft')
    page.wait_for_function(CHANGED, arg=[1, other])                      # a step back along its path
    page.get_by_role('button', name='tile', exact=True).click()          # the reader's own picture is still there
    page.get_by_text('Original · mine.png').wait_for()


def test_the_divider_and_the_attributes_of_the_page(page):
    box = page.locator('.hx-compare')
    cut = lambda: float(box.get_attribute('aria-valuenow'))
    area = box.bounding_box()
    page.mouse.move(area['x'] + area['width'] / 2, area['y'] + 50)
    page.mouse.down()
    page.mouse.move(area['x'] + area['width'] / 4, area['y'] + 50)
    page.mouse.up()
    assert abs(cut() - 25) < 3
    page.keyboard.down(' ')
    page.wait_for_timeout(100)
    assert cut() == 100                                                  # blink: all of it the reconstruction
    page.keyboard.up(' ')
    page.wait_for_timeout(100)
    assert abs(cut() - 25) < 3
    edited = picture(page, 2)
    page.get_by_role('button', name='attributes').click()
    handle = page.locator('.widget-hslider', has_text='#').first.locator('.noUi-handle')
    handle.focus()
    for _ in range(8): page.keyboard.press('ArrowRight')
    page.get_by_text('By attributes').wait_for()
    page.wait_for_timeout(300)
    assert picture(page, 2) != edited


def test_another_target_is_asked_for_and_the_answer_is_saved(page):
    now = page.get_by_text('It says').first.locator('.cls').first.inner_text().strip()
    other = next(c for c in ('healthy', 'adenocarcinoma') if c != now)
    page.locator('.widget-dropdown', has_text='ask for').locator('select').select_option(now)
    page.get_by_text(f'already says {now}').wait_for()                   # the class that it is: no answer, in words
    page.locator('.widget-dropdown', has_text='ask for').locator('select').select_option(other)
    page.get_by_text('makes it say').wait_for()
    for kind in ('numbers (JSON)', 'figure (PNG)', 'report (HTML)'):
        page.locator('.widget-dropdown').filter(has=page.locator(f'option:text-is("{kind}")')).locator(
            'select').select_option(kind)
        ending = kind.split('(')[1][:-1].lower()
        page.get_by_text(f'Saved as explanation_mine_{other}.{ending}').wait_for()
    saved = sorted(p.name for p in page.folder.glob('explanation_*'))
    assert saved == [f'explanation_mine_{other}.{k}' for k in ('html', 'json', 'png')]


def test_the_page_asks_nothing_of_anybody_else(page):
    here = ('http://localhost', 'http://127.0.0.1', 'data:', 'blob:', 'ws://localhost', 'ws://127.0.0.1')
    assert [u for u in page.asked if not u.startswith(here)] == []
