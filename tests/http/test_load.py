"""Many clients at once: nothing leaks, nothing sticks, nobody gets a 5xx."""

import random
import struct
import threading

import requests
import wire


def codes(server):
    return sum(server.metric("wring_http_requests_total", code=c) for c in ("500", "503"))


def test_256_streams(server):
    results = []

    def one(i):
        r = server.post("/v1/completions", {"prompt": f"Number {i} is", "max_tokens": 16, "stream": True,
                                            "ignore_eos": True, "stream_options": {"include_usage": True}}, stream=True)
        got = wire.events(r) if r.status_code == 200 else []
        results.append((r.status_code, got[-1]["usage"]["completion_tokens"] if got else 0))

    before = codes(server)
    threads = [threading.Thread(target=one, args=(i,)) for i in range(256)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [(200, 16)] * 256
    assert codes(server) == before
    server.wait_idle()


def test_1000_hang_ups(server):
    before, rng = codes(server), random.Random(3)
    full = wire.request_bytes("/v1/completions", {"prompt": "A", "max_tokens": 500, "stream": True, "ignore_eos": True})
    plain = wire.request_bytes("/v1/completions", {"prompt": "A", "max_tokens": 500, "ignore_eos": True})
    lock = threading.Lock()

    def some(n):
        for _ in range(n):
            with lock:
                how, cut, reset = rng.randrange(4), rng.randrange(len(full)), rng.random() < 0.5
            s = server.connect()
            if how:
                s.sendall((full if how == 1 else plain if how == 2 else full[:cut]))
            if reset:
                s.setsockopt(wire.socket.SOL_SOCKET, wire.socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.close()

    threads = [threading.Thread(target=some, args=(50,)) for _ in range(20)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    server.wait_idle(30)
    assert codes(server) == before
    r = requests.post(server.url + "/v1/completions", json={"prompt": "A", "max_tokens": 2}, timeout=30)
    assert r.status_code == 200
