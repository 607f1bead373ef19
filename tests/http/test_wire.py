"""HTTP itself: headers, methods, framing, odd clients."""

import http.client
import json

import pytest
import requests
import wire


def test_small_routes(server):
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/version").json()["version"]
    wire.check("ModelList", server.get("/v1/models").json())
    wire.check("Model", server.get("/v1/models/" + server.model).json())
    wire.check_error(server.get("/v1/models/nobody"), 404, "model_not_found", "model")


def test_unknown_path_and_method(server):
    wire.check_error(server.get("/v1/nothing"), 404, "unknown_url")
    r = requests.delete(server.url + "/health", timeout=10)
    wire.check_error(r, 405, "method_not_supported")
    assert "GET" in r.headers["Allow"]
    wire.check_error(server.get("/v1/chat/completions"), 405, "method_not_supported")


def test_request_id(server):
    r = requests.get(server.url + "/health", headers={"x-request-id": "my-id.1"}, timeout=10)
    assert r.headers["x-request-id"] == "my-id.1"
    r = requests.get(server.url + "/health", headers={"x-request-id": "bad id\t<"}, timeout=10)
    assert r.headers["x-request-id"].startswith("req_")


def test_cors(server):
    r = requests.options(server.url + "/v1/chat/completions", timeout=10, headers={
        "Origin": "http://example.com", "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os"})
    assert r.status_code == 204 and r.headers["Access-Control-Allow-Origin"] == "*"
    assert "POST" in r.headers["Access-Control-Allow-Methods"]
    assert "x-stainless-os" in r.headers["Access-Control-Allow-Headers"]
    assert "Retry-After" in server.get("/health").headers["Access-Control-Expose-Headers"]


def test_head(server):
    r = requests.head(server.url + "/health", timeout=10)
    assert r.status_code == 200 and r.content == b"" and int(r.headers["Content-Length"]) > 0


def test_media_type(server):
    r = requests.post(server.url + "/tokenize", data='{"content":"a"}', timeout=10,
                      headers={"Content-Type": "text/plain"})
    wire.check_error(r, 415, "unsupported_content_type")
    r = requests.post(server.url + "/tokenize", data='{"content":"a"}', timeout=10,
                      headers={"Content-Type": "application/json; charset=utf-8"})
    assert r.status_code == 200


@pytest.mark.parametrize("coding,status", [("gzip", 415), ("identity", 200), ("Identity", 200), ("deflate, br", 415), ("", 200)])
def test_content_encoding(server, coding, status):
    r = requests.post(server.url + "/tokenize", json={"content": "a"}, timeout=10, headers={"Content-Encoding": coding})
    assert r.status_code == status
    if status == 415:
        e = wire.check_error(r, 415, "unsupported_content_encoding")
        assert "Content-Encoding: '" + coding in e["message"]


def test_large_body(server):
    big = b'{"content":"' + b"a" * (9 << 20) + b'"}'
    headers = {"Content-Type": "application/json"}

    def chunks():
        for i in range(0, len(big), 65536):
            yield big[i:i + 65536]

    wire.check_error(requests.post(server.url + "/tokenize", data=chunks(), headers=headers, timeout=60), 413,
                     "request_too_large")
    for more in (b"Content-Length: 99999999999\r\n", b"Content-Length: %d\r\nExpect: 100-continue\r\n" % len(big)):
        with server.connect() as s:
            s.sendall(b"POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n" + more + b"\r\n")
            status, headers, body = wire.read_reply(s)
        assert status == 413 and headers["connection"].lower() == "close"
        wire.check("Error", json.loads(body))


@pytest.mark.parametrize("size", [(8 << 20) + 1, 9 << 20, 30 << 20])
def test_large_body_is_read(server, size):
    """A client that writes its whole body before it reads is told, and may go on."""
    client = http.client.HTTPConnection(server.host, server.port, timeout=60)
    headers = {"Content-Type": "application/json"}
    client.request("POST", "/tokenize", b"a" * size, headers)
    r = client.getresponse()
    assert r.status == 413
    assert wire.check("Error", json.loads(r.read()))["error"]["code"] == "request_too_large"
    client.request("POST", "/tokenize", b'{"content":"a"}', headers)
    assert client.getresponse().status == 200
    client.close()


@pytest.mark.parametrize("head", [
    "Content-Length: 2\r\nContent-Length: 3\r\n",
    "Content-Length: 2\r\nContent-Length: 2\r\n",
    "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip\r\n",
    "Content-Length : 2\r\n",
    "Content-Length\t: 2\r\n",
])
def test_ambiguous_framing(server, head):
    with server.connect() as s:
        s.sendall(b"POST /tokenize HTTP/1.1\r\nHost: t\r\n" + head.encode() + b"\r\n{}")
        status, headers, _ = wire.read_reply(s)
    assert status in (400, 501) and headers.get("connection", "close").lower() == "close"


def test_old_requests_are_not_chunked(server):
    """As RFC 9112, 6.1, has it."""
    with server.connect() as s:
        s.sendall(b"POST /tokenize HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert wire.read_reply(s)[0] == 400


@pytest.mark.parametrize("version", [b"1.1", b"1.2"])
@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n"])
def test_host_is_required(server, hosts, version):
    with server.connect() as s:
        s.sendall(b"GET /health HTTP/" + version + b"\r\n" + hosts + b"\r\n")
        status, headers, body = wire.read_reply(s)
        assert status == 400 and headers["connection"].lower() == "close" and not s.recv(1)
    assert "Host" in wire.check("Error", json.loads(body))["error"]["message"]


def test_blank_in_a_target(server):
    with server.connect() as s:
        s.sendall(b"GET /hea lth HTTP/1.1\r\nHost: t\r\n\r\n")
        assert wire.read_reply(s)[0] == 404


@pytest.mark.parametrize("target,status", [
    (b"http://t/health", 200), (b"HTTP://t:8080/health?x=1", 200), (b"https://t/version", 200), (b"http://t", 200),
    (b"http://t/v1/models/nobody", 404), (b"http:/health", 404)])
def test_absolute_form(server, target, status):
    """As a proxy asks (RFC 9112, 3.2.2)."""
    with server.connect() as s:
        s.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: t\r\n\r\n")
        assert wire.read_reply(s)[0] == status


def test_http_1_0_stream(server):
    with server.connect() as s:
        s.sendall(wire.request_bytes("/v1/completions", {"prompt": "A", "max_tokens": 2, "stream": True})
                  .replace(b"HTTP/1.1", b"HTTP/1.0"))
        status, headers, body = wire.read_reply(s)
    assert status == 200 and "transfer-encoding" not in headers and body.endswith(b"data: [DONE]\n\n")


def test_expect_continue(server):
    with server.connect() as s:
        data = b'{"content":"a"}'
        s.sendall(b"POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
                  b"Content-Length: %d\r\n\r\n" % len(data))
        assert s.recv(4096).startswith(b"HTTP/1.1 100")
        s.sendall(data)
        assert wire.read_reply(s)[0] == 200


def test_keep_alive_after_error(server):
    with requests.Session() as session:
        for _ in range(3):
            assert session.post(server.url + "/tokenize", json={"content": 1}, timeout=10).status_code == 400
            assert session.post(server.url + "/tokenize", json={"content": "a"}, timeout=10).status_code == 200


def test_stream_headers(server):
    r = server.post("/v1/completions", {"prompt": "A", "max_tokens": 1, "stream": True}, stream=True)
    assert r.headers["Content-Type"].startswith("text/event-stream")
    assert r.headers["Cache-Control"] == "no-cache" and r.headers["x-request-id"]
    wire.events(r)


def test_tokens_round_trip(server):
    text = "Grüße, 世界! 🙂 x = 1;\n\n  end"
    ids = wire.check("TokenizeReply", server.post("/tokenize", {"content": text}).json())["tokens"]
    assert wire.check("DetokenizeReply", server.post("/detokenize", {"tokens": ids}).json())["content"].strip() == text
    pieces = server.post("/tokenize", {"content": text, "with_pieces": True}).json()["tokens"]
    assert [p["id"] for p in pieces] == ids
    for nothing in ({"content": ""}, {"content": "", "add_special": True}, {"prompt": ""}):
        r = wire.check("TokenizeReply", server.post("/tokenize", nothing).json())
        assert r["count"] == len(r["tokens"]) <= ("content" not in nothing or "add_special" in nothing)
    chat = server.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}]}).json()
    assert chat["count"] == len(chat["tokens"]) > 2


def test_metrics(server):
    server.post("/v1/completions", {"prompt": "A", "max_tokens": 4})
    r = server.get("/metrics")
    assert r.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    text = r.text
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
                 "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_bucket",
                 "vllm:e2e_request_latency_seconds_count", "vllm:request_success_total", "vllm:cache_config_info",
                 "wring_build_info", "wring_http_requests_total"):
        assert "\n" + name in text, name
    seen = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            assert line not in seen, line
            seen.add(line)
    assert 0 <= server.metric("vllm:kv_cache_usage_perc") <= 1
    assert server.metric("wring_generation_tokens_total") >= 1
