"""The plan of the house: one notebook, one module; imports never run back up the numbers; nothing is executed from a
file."""

import ast, json, re, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))
ROOM = {nb.stem.split('_', 1)[1]: k for k, nb in enumerate(NOTEBOOKS)}


def cells(nb): return json.loads(nb.read_text(encoding='utf-8'))['cells']


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_imports_never_run_back_up(nb):
    name = nb.stem.split('_', 1)[1]
    tree = ast.parse((ROOT/'histoxplaining'/f'{name}.py').read_text(encoding='utf-8'))
    used = {n.module.split('.')[-1] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module
        and (n.level or n.module.startswith('histoxplaining'))}
    late = {u for u in used if ROOM[u] >= ROOM[name]}
    assert not late, f'{nb.name} imports from rooms that come after it: {late}'


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_executed_and_shows_something(nb):
    code = [c for c in cells(nb) if c['cell_type'] == 'code']
    outputs = [o for c in code for o in c['outputs']]
    assert not [o for o in outputs if o['output_type'] == 'error']
    assert outputs, f'{nb.name} stores no output: the site would show nothing'
    big = [len(d) for o in outputs for k, d in o.get('data', {}).items() if k.startswith('image/')
        and len(d) > 400_000]
    assert not big, f'{nb.name} stores pictures of {big} base64 characters'


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_public_functions_say_what_they_do(nb):
    name = nb.stem.split('_', 1)[1]
    tree = ast.parse((ROOT/'histoxplaining'/f'{name}.py').read_text(encoding='utf-8'))
    mute = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_')
        and not ast.get_docstring(n)]
    assert not mute, f'no docstring: {mute}'


def test_every_torch_load_is_weights_only():
    for p in (ROOT/'histoxplaining').glob('*.py'):
        for n in ast.walk(ast.parse(p.read_text(encoding='utf-8'))):
            if isinstance(n, ast.Call) and ast.unparse(n.func) == 'torch.load':
                assert any(k.arg == 'weights_only' and getattr(k.value, 'value', None) is True
                    for k in n.keywords), f'{p.name}:{n.lineno}'


def test_no_machine_paths():
    texts = [p for pat in ('nbs/*.ipynb', 'histoxplaining/*.py', 'tests/*.py', '*.md', 'Makefile', 'settings.ini')
        for p in ROOT.glob(pat)]
    found = [(p.name, m) for p in texts if p != Path(__file__)
        for m in re.findall(r'(?:/home/|/root/|/work/|/Users/)[\w.]+', p.read_text(encoding='utf-8'))]
    assert not found


def test_the_top_loads_nothing_that_is_not_asked_for():
    "Importing the package is cheap, its names are there, and modules answer to their old names for one release."
    script = ("import sys, histoxplaining; assert 'torch' not in sys.modules\n"
              "import warnings, importlib\n"
              "from histoxplaining import Explainer, explain, Explorer, TileStore, Classifier, train, evaluate, audit, "
                  "write_report\n"
              "assert callable(audit) and all(hasattr(histoxplaining, n) for n in histoxplaining.__all__)\n"
              "for old, new in histoxplaining._MOVED.items():\n"
              "    with warnings.catch_warnings(record=True) as w:\n"
              "        warnings.simplefilter('always')\n"
              "        one, two = (importlib.import_module('histoxplaining.' + n) for n in (old, new))\n"
              "    assert one is two and one.__spec__.name == 'histoxplaining.' + new and any('is called' in "
                  "str(v.message) for v in w), old\n")
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_room_takes_private_names_of_another():
    for nb in NOTEBOOKS:
        tree = ast.parse((ROOT/'histoxplaining'/f"{nb.stem.split('_', 1)[1]}.py").read_text(encoding='utf-8'))
        taken = [f'{n.module}.{a.name}' for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level
            for a in n.names if a.name.startswith('_') and not a.name.startswith('__')]
        assert not taken, f'{nb.name} takes {taken}'


def texts():
    "All code that is written by hand: cells of notebooks, tests, benchmarks, CI."
    for nb in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in nb.parts: continue
        for k, c in enumerate(cells(nb)):
            if c['cell_type'] == 'code': yield f'{nb.stem}[{k}]', ''.join(c['source'])
    for d in ('tests', 'benchmarks', '.ci'):
        for p in sorted((ROOT/d).glob('*.py')): yield p.name, p.read_text(encoding='utf-8')


def parsed():
    for where, text in texts():
        lines = ['' if line.startswith(('%', '!')) else line for line in text.split('\n')]
        yield where, ast.parse('\n'.join(lines))


def test_lines_are_not_too_long():
    wide = [f'{where}: {line[:100]}' for where, text in texts() for line in text.split('\n') if len(line) > 120]
    assert not wide


def test_functions_are_not_too_long():
    "60 lines with signature and docstring, 40 of body."
    long = []
    for where, tree in parsed():
        for f in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
            body = f.body[1:] if ast.get_docstring(f) and len(f.body) > 1 else f.body
            if f.end_lineno - f.lineno >= 60 or f.end_lineno - body[0].lineno >= 40: long.append(f'{where}: {f.name}')
    assert not long


def test_no_conditional_within_a_conditional():
    nested = [f'{where}, line {n.lineno}' for where, tree in parsed() for n in ast.walk(tree)
        if isinstance(n, ast.IfExp) and (isinstance(n.orelse, ast.IfExp) or isinstance(n.body, ast.IfExp))]
    assert not nested


def test_parameters_of_public_functions_are_explained():
    mute = []
    for nb in NOTEBOOKS:
        for c in cells(nb):
            s = ''.join(c['source'])
            if c['cell_type'] != 'code' or not s.startswith('#| export'): continue
            for f in ast.parse(s).body:
                if not isinstance(f, ast.FunctionDef) or f.name.startswith('_'): continue
                head = s.split('\n')[f.lineno - 1:f.body[0].lineno - 1]
                if len(f.args.args + f.args.kwonlyargs) > 1 and not any('#' in line for line in head):
                    mute.append(f'{nb.stem}: {f.name}')
    assert not mute


def test_notebooks_are_light():
    heavy = [p.name for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts
        and p.stat().st_size > 600_000]
    assert not heavy, f'{heavy}: python .ci/pictures.py'


def test_rooms_have_numbers_of_their_own():
    numbers = [p.name[:2] for p in sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))]
    assert numbers == [f'{i:02d}' for i in range(len(numbers))]
