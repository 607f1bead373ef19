"""Keys, overload, the beginning and the end of a server; a conversation and other commands in the terminal."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
import requests
import wire


def test_api_key(start):
    server = start("--api-key", "secret-key")
    for path in ("/health", "/"):
        assert requests.get(server.url + path, timeout=10).status_code == 200
    for path in ("/v1/models", "/version", "/metrics", "/nothing"):
        r = requests.get(server.url + path, timeout=10)
        wire.check_error(r, 401, "invalid_api_key")
        assert r.headers["WWW-Authenticate"] == "Bearer"
    for r in (requests.get(server.url + "/tokenize", timeout=10), requests.delete(server.url + "/version", timeout=10),
              requests.post(server.url + "/tokenize", data="a", headers={"Content-Type": "text/plain"}, timeout=10)):
        wire.check_error(r, 401, "invalid_api_key")
        assert "Allow" not in r.headers
    assert requests.delete(server.url + "/health", timeout=10).status_code == 405
    assert requests.options(server.url + "/tokenize", timeout=10).status_code == 204
    assert server.get("/tokenize").status_code == 405
    for key in ("", "Bearer ", "Bearer wrong-key!", "Bearer secret-ke", "Bearer secret-key2", "secret-key"):
        r = requests.post(server.url + "/tokenize", json={"content": "a"}, headers={"Authorization": key}, timeout=10)
        wire.check_error(r, 401, "invalid_api_key")
    assert server.post("/tokenize", {"content": "a"}).status_code == 200


def test_full_queue(start):
    server = start("--max-seqs", "1", "--max-queue", "1", "--ctx", "2048")
    socks = []
    body = {"prompt": "A", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    deadline = time.time() + 20
    while True:
        r = server.post("/v1/completions", body, stream=True)
        if r.status_code != 200:
            break
        socks.append(r)
        assert len(socks) < 8 and time.time() < deadline
    e = wire.check_error(r, 429, "rate_limit_exceeded")
    assert e["type"] == "requests" and 1 <= int(r.headers["Retry-After"]) <= 60
    for s in socks:
        s.close()
    server.wait_idle()
    r = server.post("/v1/completions", {"prompt": "A", "max_tokens": 2, "n": 6})
    assert r.status_code == 200 and len(r.json()["choices"]) == 6  # nobody waits: all are taken


def test_drain(start):
    """SIGTERM lets a running stream finish, refuses new ones, and ends with 0."""
    server = start("--drain-timeout", "30", "--ctx", "2048")
    got = []

    def stream():
        r = server.post("/v1/completions", {"prompt": "A", "max_tokens": 300, "ignore_eos": True, "stream": True},
                        stream=True)
        got.extend(wire.events(r))

    t = threading.Thread(target=stream)
    t.start()
    wire.wait_for(lambda: server.metric("wring_requests_running") == 1)
    assert server.stop() == 0
    t.join()
    assert got[-1]["choices"][0]["finish_reason"] == "length"


def test_drain_deadline(start):
    """What is left after the deadline is told so, and the end is still clean."""
    server = start("--drain-timeout", "0", "--ctx", "2048")
    lines = []

    def stream():
        r = server.post("/v1/completions", {"prompt": "A", "max_tokens": 1900, "ignore_eos": True, "stream": True},
                        stream=True)
        lines.extend(line for line in r.iter_lines() if line)

    t = threading.Thread(target=stream)
    t.start()
    wire.wait_for(lambda: server.metric("wring_requests_running") == 1)
    began = time.time()
    assert server.stop() == 0
    assert time.time() - began < 10
    t.join()
    assert b"[DONE]" not in lines[-1]
    assert b'"shutting_down"' in lines[-1]


def test_prompts_are_logged_whole(folder):
    server = wire.Server("--device", "cpu", "--kv-size", "16M", "--log-prompts", model=folder)
    body = {"prompt": "Say \"é\"\n" * 40, "max_tokens": 100, "ignore_eos": True}
    answer = server.post("/v1/completions", body).json()["choices"][0]["text"]
    assert server.stop() == 0
    server.reader.join()
    found = [re.search(r"event=(prompt|answer) .*? (?:body|text)=(.*)", line) for line in server.log]
    values = {m[1]: json.loads(m[2]) for m in found if m}
    assert json.loads(values["prompt"]) == body
    assert values["answer"] == answer and len(answer) > 100


def test_second_signal_ends_at_once(start):
    server = start("--drain-timeout", "60", "--ctx", "2048")
    body = {"prompt": ["A"] * 8, "n": 8, "max_tokens": 1900, "ignore_eos": True}  # seconds, however fast the machine

    def ask():
        with pytest.raises(requests.ConnectionError):
            server.post("/v1/completions", body)

    t = threading.Thread(target=ask)
    t.start()
    wire.wait_for(lambda: server.metric("wring_requests_running") > 0)
    server.proc.send_signal(signal.SIGINT)
    while not any("event=draining" in line for line in server.log):
        assert server.proc.poll() is None
        time.sleep(0.01)
    server.proc.send_signal(signal.SIGTERM)  # once more, as timeout(1) does: nothing
    time.sleep(0.2)
    assert server.proc.poll() is None
    began = time.time()
    assert server.stop(signal.SIGINT) == 1, "a code of its own: process 1 of a container is not ended by what signals do by default"
    assert time.time() - began < 5
    t.join()


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_loading(tmp_path, sig):
    """A file of the model that never comes; nobody has to wait for it."""
    if not wire.BINARY.exists():
        pytest.skip(f"{wire.BINARY} is not built")
    os.mkfifo(tmp_path / "config.json")
    args = [wire.BINARY, "serve", tmp_path, "--device", "cpu", "--port", "0"]
    proc = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    try:
        fd = os.open(tmp_path / "config.json", os.O_WRONLY)  # until it is read
        proc.send_signal(sig)
        assert proc.wait(10) == 1
        assert proc.stderr.read().endswith("wring: stopped\n")
        os.close(fd)
    finally:
        proc.kill()
        proc.wait()


def test_port_is_held_while_loading(tmp_path):
    """Who asks meanwhile is told to wait; who wants the same port is told at once."""
    if not wire.BINARY.exists():
        pytest.skip(f"{wire.BINARY} is not built")
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    os.mkfifo(tmp_path / "config.json")
    args = [wire.BINARY, "serve", tmp_path, "--device", "cpu", "--port", str(port)]
    proc = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    try:
        fd = os.open(tmp_path / "config.json", os.O_WRONLY)  # until it is read
        r = requests.get(f"http://127.0.0.1:{port}/health", timeout=10)
        assert wire.check_error(r, 503, "loading") and 1 <= int(r.headers["Retry-After"]) <= 60
        other = run("serve", "nothing/there", "--device", "cpu", "--port", str(port))
        assert other.returncode == 1 and f"port {port}: Address already in use" in other.stderr
        os.close(fd)  # an empty file is no model
        assert proc.wait(10) == 1
    finally:
        proc.kill()
        proc.wait()


@pytest.mark.parametrize("path", [".", "./", "../stories260K/.", "configs/..", "../stories260K//"])
def test_folder_has_a_name(folder, monkeypatch, path):
    """A server in its model's folder does not serve a model called "."."""
    (folder / "configs").mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    server = wire.Server("--device", "cpu", "--kv-size", "16M", model=path)
    assert server.model == "stories260K"
    assert server.stop() == 0


@pytest.mark.parametrize("host, told", [("::1", "[::1]"), ("::", "[::1]"), ("0.0.0.0", "127.0.0.1"),
                                        ("localhost", "localhost")])
def test_url_can_be_opened(folder, host, told):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        if ":" in host:
            pytest.skip("there is no IPv6 here")
    server = wire.Server("--device", "cpu", "--kv-size", "16M", "--host", host, model=folder)
    assert server.url == f"http://{told}:{server.port}"
    server.connect().close()
    assert server.stop() == 0


@pytest.mark.parametrize("options, told", [(["--ctx", "1024"], "context_beyond_training ctx=1024 trained=512"),
                                           (["--kv-size", "306K"], "context_cut_to_pool ctx=256 trained=512"),
                                           (["--ctx", "512"], None), ([], None)])
def test_other_contexts_are_told(folder, options, told):
    server = wire.Server("--device", "cpu", *options, model=folder)
    assert [told in line for line in server.log if "event=context_" in line] == [True] * (told is not None)
    assert server.stop() == 0


def chat(folder, *lines, options=()):
    """Bytes that are no UTF-8 are written as Python does it in names of files: \\udcff for 255."""
    args = [wire.BINARY, "chat", folder, "--device", "cpu", "--ctx", "64", "--max-tokens", "4", *options]
    return subprocess.run(args, input="".join(line + "\n" for line in lines), capture_output=True, text=True,
                          errors="surrogateescape", timeout=60)


def test_chat_outgrows_its_context(folder):
    """What does not fit is taken back; what was said before and what comes after stand."""
    long = "Once upon a time there was a little girl. " * 10
    alone = chat(folder, "Once upon a time", "She saw")
    assert alone.returncode == 0 and alone.stderr.count("/clear") == 0
    both = chat(folder, "Once upon a time", long, "She saw")
    assert both.returncode == 0 and both.stderr.count("/clear forgets the conversation") == 1
    assert "64" in both.stderr
    many = chat(folder, *["Once upon a time there was a girl."] * 12, "/clear", "Once")
    assert many.returncode == 0 and many.stderr.count("/clear") > 1
    assert many.stdout.count("\n") > alone.stdout.count("\n")


def test_chat_says_that_there_is_no_template(folder, tmp_path):
    """Before anything is asked."""
    shutil.copytree(folder, tmp_path / "plain")
    (tmp_path / "plain/tokenizer_config.json").write_text("{}")
    r = chat(tmp_path / "plain")
    assert r.returncode == 1 and "has no chat template" in r.stderr and not r.stdout


def test_chat_says_that_the_system_prompt_is_not_utf8(folder):
    r = chat(folder, "Once", options=("--system", "Gr\udcfc\udcdfe"))
    assert r.returncode == 1 and r.stderr.endswith("wring: system: the text is not UTF-8\n")


@pytest.mark.parametrize("line, told", [("x" * (1 << 21), "bytes"), ("Gr\udcfc\udcdfe", "UTF-8"), ("little girl " * 99, "64")])
def test_chat_fails_without_an_answer(folder, line, told):
    r = chat(folder, line)
    assert r.returncode == 1 and told in r.stderr and not r.stdout
    assert chat(folder, "Once", line, "/clear").returncode == 1
    assert chat(folder, line, "", "Once").returncode == 0


def test_chat_goes_on_after_a_line_that_is_not_utf8(folder):
    alone = chat(folder, "Once upon a time")
    r = chat(folder, "Gr\udcfc\udcdfe", "Once upon a time")
    assert r.returncode == 0 and r.stderr.count("the line is not UTF-8\n") == 1
    assert alone.returncode == 0 and r.stdout.count("\n") == alone.stdout.count("\n") > 0


def test_chat_goes_on_after_a_line_without_end(folder):
    alone = chat(folder, "Once upon a time")
    r = chat(folder, "x" * (1 << 21), "Once upon a time")
    assert r.returncode == 0 and r.stderr.count("the line has more than 1048576 bytes\n") == 1
    assert alone.returncode == 0 and r.stdout.count("\n") == alone.stdout.count("\n") > 0


@pytest.mark.parametrize("command", [["version"], ["options"], ["inspect"], ["inspect", "--json"], ["serve", "--help"]])
def test_full_disk_is_no_success(folder, command):
    """What a command prints on is full: it has failed, and says so."""
    args = [wire.BINARY, *command] + [folder] * (command[0] == "inspect")
    with open("/dev/full", "w") as full:
        r = subprocess.run(args, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert r.returncode == 1 and "wring: stdout: No space left on device" in r.stderr
    assert subprocess.run(args, stdout=subprocess.DEVNULL, timeout=60).returncode == 0


def run(*args):
    return subprocess.run([wire.BINARY, *args], capture_output=True, text=True, timeout=60)


def test_help_names_every_command(folder):
    names = [line.split()[1] for line in run("help").stdout.splitlines() if line.startswith("  wring ")]
    assert {"serve", "eval", "sample-config", "options", "version", "help"} <= set(names)
    for name in names:
        r = run("help", name)
        assert r.returncode == 0 and r.stdout and not r.stderr, name
    assert run("help", "serve").stdout == run("serve", "--help").stdout != run("help").stdout
    for words in [["import", "llama2c"], ["pull", "nothing"], ["inspect", "nothing/there"], ["eval", "ppl"]]:
        r = run(*words, "--help")
        assert r.returncode == 0 and r.stdout.startswith(f"Usage: wring {words[0]}") and not r.stderr
    r = run("help", "nothing")
    assert r.returncode == 2 and 'no command "nothing"' in r.stderr and not r.stdout
    for command in ["options", "sample-config", "version"]:
        r = run(command, "extra")
        assert r.returncode == 2 and 'no "extra"' in r.stderr and not r.stdout


@pytest.mark.parametrize("code, command, told", [
    (1, "serve nothing/there", "nothing/there: there is no such file or folder"),
    (2, "serve nothing/there --kv-policy nonsense", "kv-policy: "),
    (2, "quantize nothing/there out --codec nonsense", "codec: "),
    (2, "bench nothing/there --prompts 1,x", 'prompts: "1,x" is not a list'),
    (2, "bench nothing/there --prompts 1,", 'prompts: "1," is not a list'),
    (2, "bench nothing/there --kv --policies nonsense", 'policies: there is no "nonsense"'),
    (2, "bench nothing/there --kv --length 5", "length: 5"),
    (2, "bench nothing/there --kv --depths 5", 'bench --kv has no option "depths"; these have: bench without --kv'),
    (2, "bench nothing/there --length 500", 'bench without --kv has no option "length"; these have: bench --kv, eval kv'),
    (2, "eval ppl nothing/there Makefile --tasks copy", 'eval ppl has no option "tasks"; these have: eval kv'),
    (2, "eval kv nothing/there --tasks nonsense", 'tasks: there is no "nonsense"'),
    (2, "eval kv nothing/there --budgets 1,x", 'budgets: "1,x" is not a list'),
    (1, "eval kv nothing/there --text no/text", "no/text: there is no such file"),
    (1, "eval kv nothing/there --text README.md --out no/folder", "no/folder: cannot write into the folder: No such file"),
    (1, "eval kv nothing/there --text README.md --out Makefile/folder", "Makefile/folder: cannot write into the folder: Not a dir"),
    (1, "eval kv nothing/there --text README.md --out Makefile", "Makefile: cannot write"),
    (1, "eval kv nothing/there --text README.md --out new-folder", "nothing/there: there is no such file"),
    (1, "eval ppl nothing/there no/text", "no/text: cannot open: No such file"),
    (1, "eval ppl nothing/there tests", "tests: cannot read: Is a directory"),
    (1, "eval kl nothing/there nothing/there no/text", "no/text: cannot open: No such file"),
    (1, "eval tasks nothing/there no/text", "no/text: cannot open: No such file"),
])
def test_exit_codes(monkeypatch, command, code, told):
    """2: what was asked for cannot be; with a model that is not there, for that must be told before one is loaded."""
    monkeypatch.chdir(wire.ROOT)
    r = run(*command.split())
    assert r.returncode == code and f"wring: {told}" in r.stderr and not r.stdout, r.stderr
    assert not os.path.exists("new-folder")
    assert "2 asked for what cannot be" in run("help").stdout


@pytest.mark.parametrize("code, options, told", [
    (1, "nothing/there", "nothing/there.part: cannot create the folder"),
    (2, "made --codec q8", "made: is there already"),
    (2, "README.md", "README.md: is no folder to write"),
    (1, "new --calibrate no/text", "no/text: there is no such file"),
    (1, "new --calibrate README.md --align README.md,no/text", "no/text: there is no such file"),
    (2, "new --codec trellis --pareto 2,x", 'pareto: "2,x" is not a list'),
    (2, "made --codec trellis --pareto 2.5", "made: holds a model"),
    (1, "README.md --codec trellis --pareto 2.5", "README.md: cannot open the folder"),
    (1, "new --codec trellis --pareto 2.5 --calibrate no/text", "no/text: there is no such file"),
])
def test_quantize_tells_before_it_loads(folder, tmp_path, monkeypatch, code, options, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    (tmp_path / "made/config.json").write_text("{}")
    (tmp_path / "README.md").write_text("text")
    r = run("quantize", folder, *options.split())
    assert r.returncode == code and f"wring: {told}" in r.stderr, r.stderr
    assert 'stage="load"' not in r.stderr
    assert not os.path.exists("new") and not os.path.exists("new.part")
