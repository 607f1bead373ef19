"""Helpers: a small model, starting a server, raw sockets, server-sent events, schemas, metrics."""

import atexit
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
import urllib.parse

import jsonschema
import requests
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("WRING", ROOT / "build" / "wring"))


def find_model():
    """WRING_TEST_MODEL, or the smallest suitable model under WRING_MODELS or the data home; None when there is none."""
    if os.environ.get("WRING_TEST_MODEL"):
        return os.environ["WRING_TEST_MODEL"]
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    for folder in (os.environ.get("WRING_MODELS"), os.path.join(data, "wring", "models")):
        if not folder or not os.path.isdir(folder):
            continue
        found = [p for p in pathlib.Path(folder).rglob("*.gguf") if "smollm2" in p.name.lower()]
        if found:
            return str(min(found, key=lambda p: p.stat().st_size))
    return None


def import_small(folder, template):
    """stories260K as a folder, with a chat template of its own."""
    golden = ROOT / "tests/golden/models"
    subprocess.run([BINARY, "import", "llama2c", golden / "stories260K.bin", golden / "tok512.bin", folder], check=True)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    return folder


def wait_for(condition, timeout=20):
    deadline = time.time() + timeout
    while not condition():
        assert time.time() < deadline
        time.sleep(0.01)


class Server:
    """One `wring serve` process on a free port, or one that runs already."""

    def __init__(self, *options, url=None, binary=BINARY, model=None):
        self.proc = None
        self.key = None
        if url:
            self.url = url.rstrip("/")
        else:
            args = [str(binary), "serve", str(model or find_model()), "--port", "0", "--log-level", "info", *options]
            if "--api-key" in options:
                self.key = options[options.index("--api-key") + 1]
            self.log = []
            self.proc = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
            atexit.register(self.proc.kill)  # of a test that failed before it stopped it
            self.url = self._wait_for_url()
        at = urllib.parse.urlsplit(self.url)
        self.host, self.port = at.hostname, at.port
        self.model = requests.get(self.url + "/v1/models", headers=self.headers(), timeout=30).json()["data"][0]["id"]

    def _wait_for_url(self):
        for line in self.proc.stderr:
            self.log.append(line)
            m = re.search(r"event=listening.*?url=(http://\S+)", line)
            if m:
                # Somebody must read the log, or the server would block on a full pipe.
                import threading
                self.reader = threading.Thread(target=lambda: self.log.extend(self.proc.stderr), daemon=True)
                self.reader.start()
                return m.group(1)
        raise RuntimeError("the server did not start:\n" + "".join(self.log))

    def headers(self):
        return {"Authorization": "Bearer " + self.key} if self.key else {}

    def stop(self, sig=signal.SIGTERM, timeout=60):
        if self.proc and self.proc.poll() is None:
            self.proc.send_signal(sig)
        return self.proc.wait(timeout) if self.proc else 0

    def get(self, path, **kw):
        return requests.get(self.url + path, headers=self.headers(), timeout=60, **kw)

    def post(self, path, body, **kw):
        return requests.post(self.url + path, json=body, headers=self.headers(), timeout=120, **kw)

    def metric(self, name, **labels):
        """Sum of a metric's series that have these labels."""
        total = 0.0
        text = self.get("/metrics").text
        assert f"\n# TYPE {re.sub('_(sum|count|bucket)$', '', name)} " in "\n" + text, name
        for line in text.splitlines():
            m = re.match(r"([\w:]+)(?:\{(.*)\})? (\S+)$", line)
            if m and m.group(1) == name and all(f'{k}="{v}"' in (m.group(2) or "") for k, v in labels.items()):
                total += float(m.group(3))
        return total

    def wait_idle(self, timeout=10):
        """Until no sequence runs or waits and no page is held."""
        deadline = time.time() + timeout
        while True:
            state = {n: self.metric("wring_" + n) for n in
                     ("requests_running", "requests_waiting", "kv_pages_used", "http_generating")}
            if not any(state.values()):
                return
            assert time.time() < deadline, state
            time.sleep(0.02)

    def connect(self, timeout=30):
        return socket.create_connection((self.host, self.port), timeout=timeout)


def request_bytes(path, body, extra=""):
    data = json.dumps(body).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n{extra}"
            f"Content-Length: {len(data)}\r\n\r\n").encode() + data


def read_reply(sock):
    """(status, headers, body) of one reply; a body without length is read to the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part:
            return None, {}, data
        data += part
    head, rest = data.split(b"\r\n\r\n", 1)
    lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
    length = int(headers["content-length"]) if "content-length" in headers else None
    while length is None or len(rest) < length:
        part = sock.recv(65536)
        if not part:
            break
        rest += part
    return int(lines[0].split()[1]), headers, rest


def events(response):
    """The parsed data of a stream; the last one must be [DONE]."""
    out, done = [], False
    for line in response.iter_lines():
        if not line or line.startswith(b":"):
            continue
        assert line.startswith(b"data: "), line
        assert not done, "an event after [DONE]"
        if line == b"data: [DONE]":
            done = True
        else:
            out.append(json.loads(line[6:]))
    assert done, "the stream ended without [DONE]"
    return out


_api = yaml.safe_load((ROOT / "api" / "openapi.yaml").read_text())


def operation(path, method):
    return _api["paths"][path][method]


def check(schema_name, value):
    """Validates value against a schema of api/openapi.yaml."""
    jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{schema_name}", "components": _api["components"]}).validate(value)
    return value


def check_error(response, status, code=None, param=None):
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    e = check("Error", response.json())["error"]
    assert e["code"] == code and e["param"] == param, e
    assert response.headers.get("x-request-id")
    return e
