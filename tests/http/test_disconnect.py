"""Clients that leave, in every phase: what they asked for stops, and its pages come back."""

import json
import random
import struct
import threading
import time

import pytest
import wire

LONG = {"prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True}


def leave(sock, reset):
    if reset:
        sock.setsockopt(wire.socket.SOL_SOCKET, wire.socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def cancelled(server, **labels):
    return server.metric("wring_requests_cancelled_total", **labels)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wait", ["at once", "first token", "later"])
def test_hang_up(server, wait, stream, reset):
    server.wait_idle()
    were = cancelled(server)
    s = server.connect()
    s.sendall(wire.request_bytes("/v1/completions", {**LONG, "stream": stream}))
    if wait == "first token" and stream:
        data = b""
        while b"data:" not in data:
            data += s.recv(4096)
    elif wait != "at once":
        time.sleep(0.05 if wait == "first token" else 0.4)
    before = time.time()
    leave(s, reset)
    server.wait_idle(5)
    assert time.time() - before < 3
    if wait != "at once":  # then it may have gone before anybody read what it asked for
        assert cancelled(server) == were + 1


@pytest.mark.parametrize("stream", [False, True])
def test_hang_up_is_logged(start, stream):
    """With what was generated until then."""
    server = start("--ctx", "2048")
    s = server.connect()
    s.sendall(wire.request_bytes("/v1/completions", {**LONG, "stream": stream}))
    wire.wait_for(lambda: server.metric("wring_generation_tokens_total") >= 3)
    leave(s, False)
    server.wait_idle()
    made = int(server.metric("wring_generation_tokens_total"))
    assert server.stop() == 0
    server.reader.join()
    line, = [line for line in server.log if "event=generation" in line]
    assert f" completion={made} finish=cancelled " in line and " prompt=0 " not in line, line


def test_hang_up_during_prefill(server):
    """A long prompt is given up between its chunks."""
    n_ctx = server.get("/v1/models").json()["data"][0]["max_model_len"]
    words = " ".join(random.Random(1).choice(["red", "blue", "green", "tall", "old"]) for _ in range(min(n_ctx, 6000) // 2))
    server.wait_idle()
    were = cancelled(server, phase="prompt")
    s = server.connect()
    s.sendall(wire.request_bytes("/v1/completions", {"prompt": words, "max_tokens": 100, "ignore_eos": True}))
    wire.wait_for(lambda: server.metric("wring_requests_running") == 1)
    leave(s, False)
    server.wait_idle(10)
    assert cancelled(server, phase="prompt") == were + 1


def test_hang_up_in_the_queue(start):
    server = start("--max-seqs", "1", "--ctx", "2048")
    first = server.connect()
    first.sendall(wire.request_bytes("/v1/completions", {**LONG, "stream": True}))
    while b"data:" not in first.recv(4096):
        pass
    second = server.connect()
    second.sendall(wire.request_bytes("/v1/completions", {**LONG, "stream": True}))
    wire.wait_for(lambda: server.metric("wring_requests_waiting") == 1)
    leave(second, False)
    wire.wait_for(lambda: server.metric("wring_requests_waiting") == 0)
    assert server.metric("wring_requests_running") == 1, "the running one went on"
    leave(first, False)
    server.wait_idle()


def test_half_requests(server):
    """Connections that never finish a request leave nothing behind."""
    server.wait_idle()
    full = wire.request_bytes("/v1/completions", LONG)
    for cut in (0, 1, 10, 60, len(full) - 30, len(full) - 1):
        s = server.connect()
        s.sendall(full[:cut])
        leave(s, cut % 2 == 0)
    server.wait_idle()
    assert server.get("/health").status_code == 200


def test_others_are_unharmed(server):
    """A stream gives the same text whether or not others come and go beside it."""
    body = {"prompt": "The sea was", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    alone = server.post("/v1/completions", body).json()["choices"][0]["text"]
    stop = threading.Event()

    def disturb():
        while not stop.is_set():
            s = server.connect()
            s.sendall(wire.request_bytes("/v1/completions", {**LONG, "stream": True}))
            time.sleep(0.02)
            leave(s, False)

    t = threading.Thread(target=disturb)
    t.start()
    try:
        for _ in range(3):
            assert server.post("/v1/completions", body).json()["choices"][0]["text"] == alone
    finally:
        stop.set()
        t.join()
    server.wait_idle()


def test_slow_reader_does_not_hold_up_others(server):
    s = server.connect()
    s.setsockopt(wire.socket.SOL_SOCKET, wire.socket.SO_RCVBUF, 4096)
    s.sendall(wire.request_bytes("/v1/completions", {**LONG, "stream": True}))
    t = time.time()
    r = server.post("/v1/completions", {"prompt": "A", "max_tokens": 4})
    assert r.status_code == 200 and json.loads(r.text)["usage"]["completion_tokens"] > 0
    assert time.time() - t < 10
    leave(s, False)
    server.wait_idle()


def test_reader_that_takes_nothing(folder):
    """Its stream is ended, on a connection that it keeps open, and nobody else's."""
    server = wire.Server("--device", "cpu", "--kv-size", "16M", "--max-seqs", "24", model=folder)
    body = {"prompt": "Once", "max_tokens": 64, "temperature": 0, "ignore_eos": True}

    def ask():
        return server.post("/v1/completions", body).json()["choices"][0]["text"]

    alone = ask()
    with wire.socket.socket() as s:
        s.settimeout(30)
        s.setsockopt(wire.socket.SOL_SOCKET, wire.socket.SO_RCVBUF, 4096)
        s.setsockopt(wire.socket.IPPROTO_TCP, wire.socket.TCP_MAXSEG, 536)  # keeps the sender's buffer small
        s.connect((server.host, server.port))
        s.sendall(wire.request_bytes("/v1/completions", {**body, "n": 16, "max_tokens": 500, "stream": True}))

        def ended():
            assert ask() == alone
            return server.metric("wring_slow_readers_total") == 1

        wire.wait_for(ended, 60)
        server.wait_idle()
        got = b""
        while part := s.recv(1 << 16):
            got += part
    assert got.startswith(b"HTTP/1.1 200") and b"data: " in got
    assert b"finish_reason\":\"" not in got and b"[DONE]" not in got, "it did not come to its end"
    assert server.metric("wring_slow_readers_total") == 1 and cancelled(server) == 0
    assert ask() == alone
    assert server.stop() == 0
    server.reader.join()
    line, = [line for line in server.log if "event=generation" in line and "choices=16" in line]
    assert " finish=cancelled " in line, line
