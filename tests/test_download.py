"""Fetching from a server with bad manners: what arrives is the file, or an error that says why and keeps what has
come."""

import hashlib, http.server, signal, subprocess, sys, threading, time
import pytest
from histoxplaining.files import DataError, fetch

DATA = bytes(i * 7 % 251 for i in range(700_000))
SUM = 'md5:' + hashlib.md5(DATA).hexdigest()


class Server:
    "Serves DATA; `plan` says what to do to each request in turn, then it behaves."
    def __enter__(self):
        self.asked, self.plan = [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *a): pass
            def do_GET(self):
                start = int(self.headers.get('Range', 'bytes=0-')[6:-1])
                what = outer.plan.pop(0) if outer.plan else ''
                outer.asked.append(start)
                data, at = DATA, start
                if isinstance(what, int):
                    self.send_error(what); return
                if what == 'no range': start = at = 0
                if what == 'other range': at = start - 1000
                if what == 'other bytes': data = bytes(len(DATA))
                self.send_response(206 if start else 200)
                if start: self.send_header('Content-Range', f'bytes {at}-{len(data) - 1}/{len(data)}')
                if what == 'short length': data = data[:100_000]
                self.send_header('Content-Length', str(len(data) - at))
                self.end_headers()
                end = {'drop': at + 300_000, 'early drop': at}.get(what, len(data))
                try:
                    for i in range(at, end, 50_000):
                        self.wfile.write(data[i:min(i + 50_000, end)])
                        if what == 'slow': self.wfile.flush(); time.sleep(.1)
                except OSError: pass

        self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.http.server_port}/tiles.zip'
        return self
    def __exit__(self, *a): self.http.shutdown(); self.http.server_close()


@pytest.fixture
def server():
    with Server() as s: yield s


def get(server, tmp_path, *plan, **kw):
    server.plan = list(plan)
    return fetch(server.url, tmp_path/'t.zip', **dict(size=len(DATA), checksum=SUM, wait=.01) | kw)


@pytest.mark.parametrize('plan, asked', [
    ([], [0]), (['drop'], [0, 300_000]), (['drop', 'drop'], [0, 300_000, 600_000]),
        (['early drop', 503, 429], [0, 0, 0, 0]),
    (['drop', 'no range'], [0, 300_000]),                     # answers 200 with everything: taken from the start
    (['drop', 'other range'], [0, 300_000, 0]),               # what it sent is not used
    (['drop', 416], [0, 300_000, 0]), (['other bytes'], [0, 0]), (['short length'], [0, 0])])
def test_the_file_arrives(server, tmp_path, plan, asked):
    assert get(server, tmp_path, *plan).read_bytes() == DATA
    assert server.asked == asked and [p.name for p in tmp_path.iterdir()] == ['t.zip']
    assert get(server, tmp_path) and len(server.asked) == len(asked)   # it is there: nothing is fetched

def test_without_size_and_checksum(server, tmp_path):
    assert get(server, tmp_path, 'drop', size=None, checksum=None).read_bytes() == DATA

@pytest.mark.parametrize('plan, says', [([404], 'the server says 404'), ([403], 'the server says 403'),
    (['other bytes'] * 2, 'came twice with the wrong contents (md5'),
    ([503] * 9, 'gave up after 8 attempts in vain (the server says 503')])
def test_what_cannot_arrive_says_why(server, tmp_path, plan, says):
    with pytest.raises(DataError) as e: get(server, tmp_path, *plan)
    assert server.url in str(e.value) and says in str(e.value)
    assert not list(tmp_path.iterdir())

def test_giving_up_keeps_what_came(server, tmp_path):
    with pytest.raises(DataError, match='300000 bytes are kept in t.zip.part'):
        get(server, tmp_path, 503, 503, 'drop', 503, 503, 503, tries=3)
    assert get(server, tmp_path).read_bytes() == DATA and server.asked[-1] == 300_000

def test_any_number_of_drops_as_long_as_something_comes(server, tmp_path):
    assert get(server, tmp_path, 'drop', 503, 'drop', 503, tries=2).read_bytes() == DATA

def test_another_file_in_the_way_is_not_lost(server, tmp_path):
    (tmp_path/'t.zip').write_text('mine')
    with pytest.raises(DataError, match='exists already, but is not the file expected .4 bytes'): get(server, tmp_path)
    assert (tmp_path/'t.zip').read_text() == 'mine' and not server.asked

def test_a_dead_server_is_named(tmp_path):
    with Server() as s: url = s.url
    with pytest.raises(DataError, match='gave up after 2 attempts in vain'):
        fetch(url, tmp_path/'t.zip', tries=2, wait=.01)

def test_a_full_disk_is_named(server, tmp_path):
    code = ('import resource, sys; from histoxplaining.files import fetch\nresource.setrlimit(resource.RLIMIT_FSIZE, '
        '(200_000, 200_000))\n'
        'try: fetch(sys.argv[1], sys.argv[2], tries=1)\nexcept ValueError as e: print(e)')
    out = subprocess.run([sys.executable, '-c', code, server.url, tmp_path/'t.zip'], capture_output=True, text=True)
    assert 't.zip.part: cannot be written' in out.stdout, out
    assert get(server, tmp_path).read_bytes() == DATA

def test_kill_and_go_on(server, tmp_path):
    server.plan = ['slow']
    code = 'import sys; from histoxplaining.files import fetch; fetch(sys.argv[1], sys.argv[2])'
    p = subprocess.Popen([sys.executable, '-c', code, server.url, tmp_path/'t.zip'])
    part = tmp_path/'t.zip.part'
    while p.poll() is None and not (part.exists() and part.stat().st_size): time.sleep(.01)
    p.send_signal(signal.SIGKILL); p.wait()
    had = part.stat().st_size
    assert 0 < had < len(DATA) and not (tmp_path/'t.zip').exists()
    assert get(server, tmp_path).read_bytes() == DATA and server.asked[-1] == had   # only the rest


def test_a_model_comes_by_address_once_and_is_what_was_told(tmp_path, monkeypatch):
    "A zip of a model folder at an address with its checksum; the second time nothing is asked for."
    import io, zipfile
    from histoxplaining.explainer import MODELS, Explainer, downloaded, model_folder
    from histoxplaining.files import CheckpointError
    monkeypatch.setenv('HX_CACHE', str(tmp_path))
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for f in (MODELS/'colon-64').iterdir(): z.write(f, f'colon-64/{f.name}')
    monkeypatch.setitem(globals(), 'DATA', out.getvalue())
    sha = hashlib.sha256(DATA).hexdigest()
    with Server() as server:
        at = f'{server.url}#sha256={sha}'
        ex = Explainer.load(at)
        assert ex.card['name'] == 'colon-64' and ex.translator is not None and len(server.asked) == 1
        assert model_folder(at) == downloaded()[0] and len(server.asked) == 1
        assert [p.name for p in (tmp_path/'models').iterdir()] == [f'tiles-{sha[:12]}']
        with pytest.raises(CheckpointError, match='say what must come'): model_folder(server.url)
        with pytest.raises(CheckpointError, match='wrong contents'):
            model_folder(f"{server.url}#sha256={'0' * 64}")
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z: z.writestr('readme.md', 'no model')
    monkeypatch.setitem(globals(), 'DATA', out.getvalue())
    with Server() as server, pytest.raises(CheckpointError, match='expected a zip of one model folder'):
        model_folder(f'{server.url}#sha256={hashlib.sha256(DATA).hexdigest()}')
