"""Downloads of `wring pull` over HTTP, from a server that does what the path says."""

import hashlib
import http.server
import json
import os
import random
import re
import shutil
import signal
import socketserver
import subprocess
import threading

import pytest
import wire

GOLDEN = wire.ROOT / "tests/golden/models"
CONTENT = random.Random(1).randbytes(1_000_000)
HALF = len(CONTENT) // 2
REST = f"bytes={HALF}-"
OTHERS = {"short": CONTENT[:-1], "long": CONTENT + b"x", "other": CONTENT[::-1],
          **{p.name: p.read_bytes() for p in GOLDEN.glob("*.bin")}}


class Handler(http.server.BaseHTTPRequestHandler):
    """/404: that status; /moved/PATH, /loop, /file: redirects; else the content, or the one of OTHERS that the path ends with.
    /cut and /stuck send no more than the half of it, and the latter waits for the client to go; /plain ignores ranges, /refuse
    refuses them."""

    def log_message(self, *args):
        pass

    def begin(self, status, **headers):
        self.send_response(status)
        for name, value in {"Connection": "close", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def do_GET(self):
        how = self.path.split("/")[1:]
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        to = {"moved": self.path[6:], "loop": "/loop", "file": "file:///dev/null"}.get(how[0])
        try:
            if to:
                self.begin(302, Location=to, Content_Length="5")
                self.wfile.write(b"moved")
            elif how[0].isdigit():
                self.begin(int(how[0]), Content_Length=str(len(CONTENT)))
                self.wfile.write(CONTENT)
            else:
                self.send(how, OTHERS.get(how[-1], CONTENT), asked)
        except ConnectionError:
            pass  # the client has seen enough

    def send(self, how, data, asked):
        at = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and how[0] != "plain" else 0
        if at and how[0] == "refuse":
            self.begin(416, Content_Range=f"bytes */{len(data)}", Content_Length="0")
            return
        span = {"Content_Range": f"bytes {at}-{len(data) - 1}/{len(data)}"} if at else {}
        self.begin(206 if at else 200, Content_Length=str(len(data) - at), **span)
        self.wfile.write(data[at:HALF] if how[0] in ("cut", "stuck") else data[at:])
        if how[0] == "stuck":
            self.connection.recv(1)


class Site(socketserver.ThreadingTCPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []  # paths and ranges
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def site():
    with Site() as s:
        t = threading.Thread(target=s.serve_forever, args=(0.01,))
        t.start()
        yield s
        s.shutdown()
        t.join()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Recipes are looked for from where the program lies: one that has a folder of its own."""
    if not wire.BINARY.exists():
        pytest.skip(f"{wire.BINARY} is not built")
    root = tmp_path_factory.mktemp("program")
    (root / "configs/models").mkdir(parents=True)
    return shutil.copy(wire.BINARY, root / "wring")


class Puller:
    """`wring pull tiny` with a data home of its own."""

    def __init__(self, program, site, home):
        self.program, self.site = program, site
        self.recipe = program.parent / "configs/models/tiny.yaml"
        self.models = home / "wring/models"
        self.part = self.models / ".tiny.part/tiny.gguf.part"
        self.env = {**os.environ, "XDG_DATA_HOME": str(home), "no_proxy": "*"}

    def write_recipe(self, files, **more):
        """files: name to bytes and where they come from, paths of the site or URLs."""
        self.recipe.write_text(json.dumps({  # which is YAML too
            "name": "tiny", "description": "d", "licence": "MIT", **more,
            "files": [{"file": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(),
                       "sources": [{"url": self.site.url + s if s[0] == "/" else s} for s in sources]}
                      for name, (data, sources) in files.items()]}))

    def start(self, *args):
        return subprocess.Popen([self.program, *args], env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *args):
        p = self.start(*args)
        try:
            out, err = p.communicate(timeout=60)
        finally:
            p.kill()
        return subprocess.CompletedProcess(args, p.returncode, out, err)

    def pull(self, *paths):
        self.site.asked.clear()
        self.write_recipe({"tiny.gguf": (CONTENT, paths)})
        return self.run("pull", "tiny")

    def there(self):
        return sorted(p.name for p in self.models.iterdir())

    def check(self, result):
        """It went well, and there is the model and nothing else."""
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"{self.models / 'tiny.gguf'}\n"
        assert (self.models / "tiny.gguf").read_bytes() == CONTENT and self.there() == ["tiny.gguf"]


@pytest.fixture
def tiny(program, site, tmp_path):
    return Puller(program, site, tmp_path)


def test_whole(tiny):
    tiny.check(tiny.pull("/whole"))
    assert tiny.site.asked == [("/whole", None)]
    tiny.check(tiny.pull("/404"))
    assert not tiny.site.asked, "it is there already"


def test_redirects(tiny):
    tiny.check(tiny.pull("/moved/moved/whole"))
    assert [path for path, _ in tiny.site.asked] == ["/moved/moved/whole", "/moved/whole", "/whole"]


@pytest.mark.parametrize("first, then, asked", [
    ("/cut", "/whole", [("/whole", REST)]),
    ("/cut", "/moved/whole", [("/moved/whole", REST), ("/whole", REST)]),
    ("/cut", "/plain", [("/plain", REST), ("/plain", None)]),
    ("/cut", "/refuse", [("/refuse", REST), ("/refuse", None)]),
    ("/cut/other", "/whole", [("/whole", REST), ("/whole", None)]),
])
def test_goes_on_after_a_cut(tiny, first, then, asked):
    """By what is missing; from the start where the server cannot do that, or the first part was of something else."""
    r = tiny.pull(first)
    assert r.returncode == 1 and f"{tiny.site.url}{first}: transfer closed with {HALF} bytes remaining" in r.stderr
    assert tiny.there() == [".tiny.part"] and tiny.part.stat().st_size == HALF and not r.stdout
    r = tiny.pull("/503")
    assert r.returncode == 1 and tiny.part.stat().st_size == HALF, "a server that is ill costs nothing of it"
    tiny.check(tiny.pull(then))
    assert tiny.site.asked == asked


def test_goes_on_with_the_next_source(tiny):
    r = tiny.pull("/cut", "/whole")
    tiny.check(r)
    assert tiny.site.asked == [("/cut", None), ("/whole", REST)] and f"{tiny.site.url}/cut: transfer closed" in r.stderr


def test_goes_on_after_a_signal(tiny):
    tiny.write_recipe({"tiny.gguf": (CONTENT, ["/stuck"])})
    p = tiny.start("pull", "tiny")
    try:
        wire.wait_for(lambda: tiny.part.exists() and tiny.part.stat().st_size == HALF)
        assert "another pull of tiny is running" in tiny.pull("/whole").stderr and not tiny.site.asked
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=20)
    finally:
        p.kill()
    assert p.returncode == 1 and err.endswith("wring: stopped\n") and not out
    assert tiny.there() == [".tiny.part"]
    tiny.check(tiny.pull("/whole"))
    assert tiny.site.asked == [("/whole", REST)]


@pytest.mark.parametrize("path, told", [
    ("/404", "error: 404"),
    ("/503", "error: 503"),
    ("/loop", "redirects"),
    ("/file", 'Protocol "file"'),
    ("/short", f"has {len(CONTENT) - 1} bytes; the recipe says {len(CONTENT)}"),
    ("/long", f"is longer than the {len(CONTENT)} bytes of the recipe"),
    ("/other", f"SHA-256 is {hashlib.sha256(CONTENT[::-1]).hexdigest()}; the recipe says "),
])
def test_fails(tiny, path, told):
    """Says where and why, leaves nothing, and asks the next source."""
    r = tiny.pull(path)
    assert r.returncode == 1 and not r.stdout and tiny.there() == []
    error = r.stderr.splitlines()[-1]
    assert error.startswith("wring: tiny.gguf: every source failed; ") and tiny.site.url + path in error and told in error
    r = tiny.pull(path, "/whole")
    tiny.check(r)
    line, = [line for line in r.stderr.splitlines() if "event=source_failed" in line]
    assert f"source={tiny.site.url}{path} " in line.replace('"', "") and told.replace('"', '\\"') in line
    assert tiny.site.asked[-1] == ("/whole", None)


def test_nobody_listens(tiny):
    """Of two files one comes; nothing stands under the model's name."""
    with Site() as gone:
        pass
    tiny.write_recipe({"a": (CONTENT, ["/whole"]), "b": (CONTENT, [gone.url])}, **{"import": "folder"})
    r = tiny.run("pull", "tiny")
    assert r.returncode == 1 and re.search(f"every source failed; .* {gone.url}: Failed to connect", r.stderr)
    assert tiny.there() == [] and tiny.site.asked == [("/whole", None)]


def test_import(tiny):
    """A recipe of two files that become a model, which goes by its name afterwards."""
    names = ["stories260K.bin", "tok512.bin"]
    tiny.write_recipe({name: (OTHERS[name], ["/503", f"/{name}"]) for name in names}, **{"import": "llama2c"})
    r = tiny.run("pull", "tiny")
    assert r.returncode == 0 and r.stdout == f"{tiny.models / 'tiny'}\n" and tiny.there() == ["tiny"], r.stderr
    assert tiny.run("inspect", "tiny").stdout == tiny.run("inspect", tiny.models / "tiny").stdout != ""
