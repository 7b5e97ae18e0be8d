"""The documentation site from the executed notebooks, without Quarto: `python .ci/site.py` in the project's folder
writes it to _docs.

nbdev prepares the notebooks, smalldocs renders them. What is done here beside calling them: the order of the sidebar,
links between rooms that stay in this copy of the site, formulas as MathML (so that the pages need no network), and a
text for every picture that has none. Not through nbdev_proc_nbs, which without Quarto tries to install it."""
import inspect, json, os, re, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
from bs4 import BeautifulSoup
from latex2mathml.converter import convert

PAGES = {'Start': {'from_your_tiles': 'From your tiles to a report', 'your_classifier': 'Your classifier'},
         'Use': {'reading_a_result': 'Reading a result', 'what_a_model_can_answer': 'What a model can answer',
             'checking': 'Choosing a method, audits, a study'},
         'Train': {'training': 'Training a model'}, 'Results': {'results': 'Results'},
         'Reference': {'by_task': 'The API by task'}}
# the first room that no longer belongs
PARTS = {'Ground': 3, 'Data': 7, 'Networks': 12, 'Classifier and models': 15, 'Measures': 18, 'Training': 26,
    'Explaining': 33, 'Judging': 35, 'Showing': 99}


def sidebar(nbs):
    "What stands at the left of every page, in the order in which a newcomer walks: overview, tutorials, rooms."
    entry = lambda text, href: f'          - text: "{text}"\n            href: {href}\n'
    rooms, first, parts = sorted(p.name for p in nbs.glob('[0-9]*.ipynb')), 0, ''
    for part, end in PARTS.items():
        mine = [n for n in rooms if first <= int(n[:2]) < end]
        parts += f'      - section: {part}\n        contents:\n' + ''.join(entry(f'{n[:2]} {n[3:-6].replace("_", " ")}',
            n) for n in mine)
        first = end
    return ('website:\n  sidebar:\n    contents:\n      - text: Overview\n        href: index.ipynb\n'
        + ''.join(f'      - section: {s}\n        contents:\n' +
            ''.join(entry(t, f'tutorials/{n}.ipynb') for n, t in pages.items()) for s, pages in PAGES.items())
        + parts)


def readable_signature(sym, eval_str=True):
    "Annotations that are not to be had stay text: older Pythons look up one that a widget's base class has not."
    try: return inspect.signature(sym, eval_str=eval_str)
    except NameError: return inspect.signature(sym)


def whole_sentences(nb):
    "nbdev sets the first line of a docstring in italics, and a sentence is often longer than a line: set it whole."
    def whole(m): return f"*{m[1]} {' '.join(m[2].split())}*" + chr(10)
    for cell in nb['cells']:
        for out in cell.get('outputs', []):
            text = ''.join(out.get('data', {}).get('text/markdown', ''))
            if '```python' in text:
                out['data']['text/markdown'] = re.sub(r'(?m)^\*(?![\s*])(.+)\*\n((?:[^\n|#`].*\n?)+)', whole, text)


def mathml(soup):
    "Formulas as MathML."
    for span in soup.select('span.math'):
        latex = span.get_text().strip()
        block = latex.startswith(r'\[')
        span.replace_with(BeautifulSoup(convert(latex[2:-2], display='block' if block else 'inline'), 'html.parser'))
    for tag in soup.select('[href*="katex"], [src*="katex"]'): tag.decompose()
    for tag in soup.find_all('script', src=False):
        if 'renderMath' in tag.get_text(): tag.decompose()


def local_links(soup, site, rooms, up):
    "nbdev links to the published site, room by module name: here, to the page beside."
    for a in soup.select(f'a[href^="{site}"]'):
        page, _, anchor = a['href'].removeprefix(site).lstrip('/').partition('#')
        page = rooms.get(page.removesuffix('.html'), page or 'index.html')
        a['href'] = up + page + (f'#{anchor}' if anchor else '')


def alt_texts(soup):
    "A picture made by code is called after the heading above it."
    for img in soup.find_all('img'):
        if img.get('alt'): continue
        above = img.find_previous(['h1', 'h2', 'h3'])
        img['alt'] = f'Figure: {above.get_text(" ", strip=True) if above else "histoxplaining"}'


def finish(page, root, site, rooms):
    soup = BeautifulSoup(page.read_text(encoding='utf-8'), 'html.parser')
    mathml(soup)
    local_links(soup, site, rooms, '../' * (len(page.relative_to(root).parts) - 1))
    alt_texts(soup)
    # a link inside a code comment stays a word
    html = re.sub(r'\[(?:`|<code>)([^`<]+)(?:`|</code>)\]\([^)\s]*\)', r'\1', str(soup))
    page.write_text(html, encoding='utf-8')


def build():
    from fastcore import docments
    from nbdev.serve import proc_nbs
    docments.signature = readable_signature
    cfg = ConfigParser(delimiters=['='])
    cfg.read('settings.ini', encoding='utf-8')
    cfg = cfg['DEFAULT']
    site = cfg['doc_host'] + cfg['doc_baseurl']
    for d in ('_proc', '_docs'): shutil.rmtree(d, ignore_errors=True)
    Path('nbs/sidebar.yml').write_text(sidebar(Path('nbs')), encoding='utf-8')
    proc_nbs(n_workers=0)
    shutil.copy('nbs/sidebar.yml', '_proc/sidebar.yml')
    for path in Path('_proc').rglob('*.ipynb'):
        nb = json.loads(path.read_text(encoding='utf-8'))
        whole_sentences(nb)
        path.write_text(json.dumps(nb), encoding='utf-8')
    done = subprocess.run([Path(sys.executable).parent/'smalldocs', 'render'], cwd='_proc', capture_output=True,
        text=True)
    quiet = ('output-file is not read', 'commonmark is not built', 'keep-md is ignored')
    for line in (done.stdout + done.stderr).splitlines():
        if not any(q in line for q in quiet): print(line)
    if done.returncode or not Path('_proc/_docs/index.html').exists(): sys.exit('the site was not built')
    shutil.move('_proc/_docs', '_docs')
    shutil.copytree('nbs/figures', '_docs/figures', dirs_exist_ok=True)
    root, rooms = Path('_docs'), {p.stem.split('_', 1)[1]: f'{p.stem}.html' for p in Path('nbs').glob('[0-9]*.ipynb')}
    for page in root.rglob('*.html'): finish(page, root, site, rooms)
    # fonts of the theme: a reader's own will do, and nothing is asked of anybody
    for sheet in root.rglob('*.css'):
        text = sheet.read_text(encoding='utf-8')
        sheet.write_text(re.sub(r"""@import\s*(?:url\([^)]*\)|"[^"]*"|'[^']*')[^;]*;""", '', text), encoding='utf-8')
    print(f'{sum(1 for _ in root.rglob("*.html"))} pages in {root.resolve().name}')


if __name__ == '__main__': build()
