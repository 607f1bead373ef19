"""Every reply has the shape that api/openapi.yaml promises."""

import jsonschema
import pytest
import wire

MESSAGES = [{"role": "user", "content": "Count to five."}]


@pytest.mark.parametrize("extra", [{}, {"n": 2}, {"min_p": 1}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 20},
                                   {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}])
def test_chat(server, extra):
    body = {"messages": MESSAGES, "max_tokens": 6, **extra}
    wire.check("ChatRequest", body)
    r = wire.check("ChatCompletion", server.post("/v1/chat/completions", body).json())
    assert len(r["choices"]) == body.get("n", 1)
    assert ("logprobs" in extra) == (r["choices"][0]["logprobs"] is not None)


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("extra", [{}, {"n": 3}, {"logprobs": True, "top_logprobs": 2}])
def test_chat_stream(server, extra, usage):
    body = {"messages": MESSAGES, "max_tokens": 6, "stream": True, **extra}
    if usage:
        body["stream_options"] = {"include_usage": True}
    got = wire.events(server.post("/v1/chat/completions", body, stream=True))
    for e in got:
        wire.check("ChatCompletionChunk", e)
        assert ("usage" in e) == usage
    if usage:
        assert got[-1]["choices"] == [] and got[-1]["usage"]["prompt_tokens"] > 0
        got = got[:-1]
    state = {}
    for e in got:
        c = e["choices"][0]
        seen = state.setdefault(c["index"], [])
        assert not seen or seen[-1] is None, "a chunk after finish_reason"
        assert ("role" in c["delta"]) == (not seen)
        seen.append(c["finish_reason"])
    assert sorted(state) == list(range(extra.get("n", 1)))
    assert all(s[-1] in ("stop", "length") for s in state.values())


CALL = [{"function": {"name": "f"}}]


@pytest.mark.parametrize("message,good", [
    ({"role": "user", "content": [{"type": "text", "text": "a"}]}, True), ({"role": "user", "content": "a", "more": 1}, True),
    ({"role": "assistant", "content": None, "tool_calls": CALL}, True), ({"role": "assistant", "refusal": "no"}, True),
    ({"role": "assistant", "function_call": {"name": "f"}}, True), ({"role": "user", "content": None}, False),
    ({"role": "assistant", "content": None}, False), ({"role": "assistant", "tool_calls": []}, False),
    ({"role": "assistant", "refusal": None}, False), ({"role": "tool", "content": None, "tool_calls": CALL}, False)])
def test_messages_without_content(server, message, good):
    """The schema lets through what the server takes."""
    body = {"messages": [*MESSAGES, message], "tools": None, "tool_choice": "auto", "chat_template_kwargs": {}}
    r = server.post("/tokenize", body)
    if good:
        wire.check("TokenizeRequest", body)
        wire.check("TokenizeReply", r.json())
    else:
        wire.check_error(r, 400, None, "messages[1].content")
        with pytest.raises(jsonschema.ValidationError):
            wire.check("TokenizeRequest", body)


@pytest.mark.parametrize("kind", ["text", "refusal"])
def test_parts_have_their_text(server, kind):
    def body(part):
        return {"messages": [{"role": "user", "content": [{"type": kind, **part}]}]}
    wire.check("TokenizeRequest", body({kind: ""}))
    assert server.post("/tokenize", body({kind: ""})).status_code == 200
    for part in ({}, {"text" if kind == "refusal" else "refusal": "a"}):
        wire.check_error(server.post("/tokenize", body(part)), 400, None, "messages[0].content[0]." + kind)
        with pytest.raises(jsonschema.ValidationError):
            wire.check("TokenizeRequest", body(part))


@pytest.mark.parametrize("fields", [("content", "prompt"), ("content", "messages"), ("prompt", "messages")])
def test_one_text_is_tokenized(server, fields):
    body = {f: MESSAGES if f == "messages" else "a" for f in fields}
    e = wire.check_error(server.post("/tokenize", body), 400, None, fields[1])
    assert fields[0] in e["message"]
    with pytest.raises(jsonschema.ValidationError):
        wire.check("TokenizeRequest", body)
    wire.check("TokenizeRequest", {fields[0]: body[fields[0]]})


@pytest.mark.parametrize("extra", [{}, {"n": 2, "prompt": ["a", "b"]}, {"logprobs": 0}, {"logprobs": 20, "echo": True}, {"top_p": 0},
                                   {"max_tokens": 0, "echo": True}, {"max_tokens": 0}])
def test_completion(server, extra):
    body = {"prompt": "Once upon a time", "max_tokens": 5, **extra}
    wire.check("CompletionRequest", body)
    wire.check("Completion", server.post("/v1/completions", body).json())
    whole = server.post("/v1/completions", {**body, "temperature": 0}).json()
    got = wire.events(server.post("/v1/completions", {**body, "temperature": 0, "stream": True}, stream=True))
    text = {}
    for e in got:
        wire.check("CompletionChunk", e)
        c = e["choices"][0]
        text[c["index"]] = text.get(c["index"], "") + c["text"]
    assert text == {c["index"]: c["text"] for c in whole["choices"]}


def test_top_p_of_nothing_takes_the_likeliest(server):
    def text(fields):
        return server.post("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 8, **fields}).json()["choices"][0]["text"]
    assert text({"top_p": 0, "temperature": 2, "seed": 5}) == text({"temperature": 0})


def test_every_route_is_described(server):
    for path in ("/health", "/version", "/v1/models", "/metrics", "/"):
        assert wire.operation(path, "get")
        assert server.get(path).status_code == 200
