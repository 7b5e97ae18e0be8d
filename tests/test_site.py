"""The site as its readers get it: every page is walked for broken links, missing pictures, formulas left raw and
anything that would need a network."""

import re, shutil, subprocess, sys
from pathlib import Path
from urllib.parse import unquote, urlparse
import pytest

bs4 = pytest.importorskip('bs4')
ROOT = Path(__file__).parent.parent
# what a browser fetches by itself
LOADED = {'img': 'src', 'script': 'src', 'link': 'href', 'iframe': 'src', 'source': 'src'}


def faults(root):
    "What is wrong with a folder of pages, one line each."
    pages = {p: bs4.BeautifulSoup(p.read_text(encoding='utf-8'), 'html.parser') for p in sorted(root.rglob('*.html'))}
    anchors = {p: {t['id'] for t in s.find_all(id=True)} | {t['name'] for t in s.find_all('a', attrs={'name': True})}
        for p, s in pages.items()}
    out = []
    for page, soup in pages.items():
        name = page.relative_to(root)
        for tag, attr in LOADED.items():
            for t in soup.find_all(tag):
                url = t.get(attr) or ''
                if re.match('https?:|//', url) and not (tag == 'link' and {'canonical'} & set(t.get('rel', []))):
                    out.append(f'{name}: fetches {url} from elsewhere')
                elif url and not url.startswith(('data:', 'http')):
                    if not (page.parent/unquote(urlparse(url).path)).is_file(): out.append(f'{name}: {url} is missing')
        for img in soup.find_all('img'):
            if not (img.get('alt') or '').strip(): out.append(f'{name}: a picture without a text')
            if not img.get('src'): out.append(f'{name}: a picture without a source')
        for a in soup.find_all('a', href=True):
            url = urlparse(a['href'])
            if url.scheme or a['href'].startswith('//'): continue
            to = (page.parent/unquote(url.path)).resolve() if url.path else page
            if to.is_dir(): to = to/'index.html'
            if not to.is_file(): out.append(f"{name}: {a['href']} leads nowhere")
            elif url.fragment and to in pages and unquote(url.fragment) not in anchors[to]:
                out.append(f"{name}: {a['href']} is not on that page")
        main = soup.find('main') or soup
        for code in main.find_all(['code', 'pre', 'script', 'style', 'annotation']): code.extract()
        text = main.get_text(' ')
        if len(text.split()) < 60: out.append(f'{name}: is nearly empty')
        if raw := re.search(r'\\\(|\\\[|\$[^$\s][^$]{0,80}\$|\\(?:frac|sum|mathbb|lVert)\b', text):
            out.append(f'{name}: a formula is left raw: {raw[0][:40]}')
        if '](' in text: out.append(f"{name}: Markdown is left raw: {text[text.index('](') - 30:][:70]}")
        if 'Traceback (most recent call last)' in soup.get_text(): out.append(f'{name}: shows a traceback')
    for sheet in root.rglob('*.css'):
        if elsewhere := re.search(r"""(?:@import|url\()\s*["']?(?:url\(["']?)?(?:https?:)?//[^)"';]*""",
                sheet.read_text(encoding='utf-8')): out.append(f'{sheet.relative_to(root)}: fetches {elsewhere[0]}')
    return out


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site, built in a copy of the project."
    for m in ('smalldocs', 'nbdev', 'latex2mathml'): pytest.importorskip(m)
    work = tmp_path_factory.mktemp('site')
    for d in ('nbs', 'histoxplaining', '.ci'):
        shutil.copytree(ROOT/d, work/d, symlinks=True,
            ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for f in ('settings.ini', '_quarto.yml', 'README.md', 'setup.py'): shutil.copy(ROOT/f, work/f)
    done = subprocess.run([sys.executable, '.ci/site.py'], cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'broken link' not in done.stdout, done.stdout
    return work/'_docs'


def test_every_page_is_whole(site):
    assert faults(site) == []
    notebooks = [p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    assert {p.relative_to(site).with_suffix('').as_posix()
        for p in site.rglob('*.html')} >= {p.relative_to(ROOT/'nbs').with_suffix('').as_posix() for p in notebooks}

def test_formulas_and_outputs_are_there(site):
    losses = (site/'18_losses.html').read_text(encoding='utf-8')
    assert '<math' in losses and 'katex' not in losses.lower()
    assert (site/'index.html').read_text(encoding='utf-8').count('<img') >= 1
    assert (site/'12_classifier.html').read_text(encoding='utf-8').count('<img') >= 3
    # a docstring of several lines is one sentence in italics, whatever code stands in it
    assert not [p.name for p in site.rglob('*.html') if '<p>*' in p.read_text(encoding='utf-8')]

def test_the_walk_finds_what_is_wrong(tmp_path):
    (tmp_path / 'a.html').write_text(
        '''<main><h1 id="top">A page</h1><img src="gone.png" alt="x"><img src="data:image/png;base64,AA==">
        <a href="b.html">b</a><a href="#bottom">down</a>
        <script src="https://cdn.example.org/x.js"></script><p>$x^2$ and [a](b)</p></main>'''
    )
    found = '\n'.join(faults(tmp_path))
    for what in ('gone.png is missing', 'without a text', 'b.html leads nowhere', '#bottom is not on that page',
            'fetches https://cdn', 'left raw: $x^2$', 'Markdown is left raw',
            'nearly empty'): assert what in found, (what, found)
