"""Bad bodies: always a 400 with OpenAI's error object and the path of the field, never a 5xx."""

import jsonschema
import pytest
import requests
import wire

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "x"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "judge", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages[0].content[0].type"),
    ({"n": 0}, "n"), ({"n": 129}, "n"), ({"n": "1"}, "n"), ({"n": [1]}, "n"),
    ({"temperature": -1}, "temperature"), ({"temperature": "hot"}, "temperature"),
    ({"top_p": -0.1}, "top_p"), ({"top_p": 1.5}, "top_p"), ({"top_k": -5}, "top_k"), ({"min_p": -1}, "min_p"),
    ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_completion_tokens": "many"}, "max_completion_tokens"),
    ({"presence_penalty": 5}, "presence_penalty"), ({"frequency_penalty": -5}, "frequency_penalty"),
    ({"repetition_penalty": -1}, "repetition_penalty"),
    ({"stop": [""]}, "stop[0]"), ({"stop": ["a"] * 17}, "stop"), ({"stop": 5}, "stop"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"), ({"stop_token_ids": [10**8]}, "stop_token_ids[0]"),
    ({"logit_bias": {"x": 1}}, "logit_bias.x"), ({"logit_bias": {"1": 1000}}, "logit_bias.1"),
    ({"logprobs": 5}, "logprobs"), ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 50}, "top_logprobs"),
    ({"stream": "yes"}, "stream"), ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"seed": "x"}, "seed"), ({"tools": {}}, "tools"), ({"tools": [{"type": "x"}]}, "tools[0].type"),
    ({"model": 5}, "model"), ({"compression": []}, "compression"),
    ({"compression": {"kv": {"policy": "nope"}}}, "compression.kv.policy"),
    ({"compression": {"kv": {"budget": -1}}}, "compression.kv.budget"),
    ({"compression": {"kv": {"policy": "full", "budget": 64}}}, "compression.kv.budget"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
]
COMPLETION = [
    ({"prompt": None}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": 5}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"), ({"prompt": [1, "a"]}, "prompt[1]"), ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": [10**9]}, "prompt[0]"), ({"prompt": ["a", 1]}, "prompt[1]"),
    ({"logprobs": 21}, "logprobs"), ({"logprobs": True}, "logprobs"), ({"echo": 1}, "echo"),
    ({"max_tokens": -1}, "max_tokens"), ({"prompt": ["a"] * 129}, "prompt"),
]
UNSUPPORTED = [
    ("/v1/chat/completions", {"messages": MESSAGES, "response_format": {"type": "json_object"}}, "response_format.type"),
    ("/v1/chat/completions", {"messages": MESSAGES, "tool_choice": "required"}, "tool_choice"),
    ("/v1/chat/completions", {"messages": MESSAGES, "compression": {"experts": {"prune": 0.5}}},
     "compression.experts.prune"),
    ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
    ("/v1/completions", {"prompt": "a", "best_of": 3}, "best_of"),
]
RAW = [
    b"", b"{", b"[]", b"null", b'"x"', b"{}x", b'{"messages":[{"role":"user","content":"\xff"}]}',
    b'{"messages":[{"role":"user","content":"\\ud800"}]}', b'{"messages":[{"role":"user","content":"\\u0000"}]}',
    b'{"temperature":1e400}', b'{"n":1,"n":2}', b'{"seed":99999999999999999999999}', b'{"temperature":NaN}',
    b'{"x":' + b"[" * 100 + b"]" * 100 + b"}", b"[" * 500000, b'{"a":' * 100000,
]


@pytest.mark.parametrize("fields,param", CHAT)
def test_chat(server, fields, param):
    body = fields if not fields or "messages" in fields else {"messages": MESSAGES, **fields}
    wire.check_error(server.post("/v1/chat/completions", body), 400, None, param)


@pytest.mark.parametrize("fields,param", COMPLETION)
def test_completion(server, fields, param):
    wire.check_error(server.post("/v1/completions", {"prompt": "a", **fields}), 400, None, param)


@pytest.mark.parametrize("path,body,param", UNSUPPORTED)
def test_unsupported(server, path, body, param):
    wire.check_error(server.post(path, body), 400, "unsupported_value", param)


@pytest.mark.parametrize("body", RAW, ids=range(len(RAW)))
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_raw(server, path, body):
    r = requests.post(server.url + path, data=body, headers={"Content-Type": "application/json"}, timeout=30)
    assert r.status_code == 400, r.text[:300]
    wire.check("Error", r.json())


@pytest.mark.parametrize("number,status", [
    ("18446744073709551615", 400), ("9223372036854775808", 400), ("1e999", 400),
    ("9223372036854775807", 200), ("-9223372036854775808", 200), ("1e308", 200)])
def test_numbers_of_fields_not_listed(server, number, status):
    """As info.description of openapi.yaml says: what JSON is here does not hang on where a number stands."""
    for field in ("x", "seed") if number.isdigit() else ("x",):
        r = requests.post(server.url + "/v1/completions", data='{"prompt":"a","max_tokens":1,"%s":%s}' % (field, number),
                          headers={"Content-Type": "application/json"}, timeout=30)
        assert r.status_code == status, (field, r.text)


def test_seed_has_bounds(server):
    """The schema takes what the server takes."""
    for seed in (2**63 - 1, -2**63):
        body = {"prompt": "a", "max_tokens": 1, "seed": seed, "compression": {"kv": {"seed": seed}}}
        wire.check("CompletionRequest", body)
        r = server.post("/v1/completions", body)
        assert r.status_code == 200, r.text
    for body in ({"seed": 2**63}, {"compression": {"kv": {"seed": -2**63 - 1}}}):
        with pytest.raises(jsonschema.ValidationError):
            wire.check("CompletionRequest", {"prompt": "a", **body})


TOOL = {"type": "function", "function": {"name": "f"}}
BIG = 2**31 - 1
BOUNDS = [  # what is taken, what is not
    ({"temperature": 2}, {"temperature": 2.1}), ({"top_p": 1}, {"top_p": 1.1}),
    ({"min_p": 1}, {"min_p": 1.1}), ({"top_k": BIG}, {"top_k": BIG + 1}),
    ({"repetition_penalty": 10}, {"repetition_penalty": 10.1}), ({"presence_penalty": 2}, {"presence_penalty": 2.1}),
    ({"frequency_penalty": 2}, {"frequency_penalty": 2.1}), ({"max_tokens": BIG}, {"max_tokens": BIG + 1}),
    ({"max_completion_tokens": BIG}, {"max_completion_tokens": BIG + 1}), ({"stop": ["a"] * 16}, {"stop": ["a"] * 17}),
    ({"stop_token_ids": [1] * 1024}, {"stop_token_ids": [1] * 1025}),
    ({"logit_bias": {str(i): 1 for i in range(1024)}}, {"logit_bias": {str(i): 1 for i in range(1025)}}),
    ({"tools": [TOOL] * 128}, {"tools": [TOOL] * 129}),
]
KV_BOUNDS = [("budget", 2**30), ("mass_floor", 1), ("local", 1), ("phi", 1), ("lambda", 1000000), ("sinks", 65536),
             ("window", 65536), ("tail", 65536), ("pool", 1024), ("queries", 512), ("stride", 32)]


def assert_bound(server, path, schema, good, bad):
    """The schema takes what the server takes; what the server takes may be an error for another reason."""
    above = ("above maximum", "array too long", "at most", "value <=")
    for body, taken in ((good, True), (bad, False)):
        told = server.post(path, body).text
        assert any(s in told for s in above) != taken, told
    wire.check(schema, good)
    with pytest.raises(jsonschema.ValidationError):
        wire.check(schema, bad)


@pytest.mark.parametrize("good,bad", BOUNDS, ids=[",".join(good) for good, _ in BOUNDS])
def test_bounds(server, good, bad):
    few = {} if "max_completion_tokens" in good else {"max_tokens": 1}
    assert_bound(server, "/v1/chat/completions", "ChatRequest", *({"messages": MESSAGES, **few, **f} for f in (good, bad)))
    if "tools" not in good:
        assert_bound(server, "/v1/completions", "CompletionRequest", *({"prompt": "a", **few, **f} for f in (good, bad)))


@pytest.mark.parametrize("field,most", KV_BOUNDS)
def test_bounds_of_pressing(server, field, most):
    assert_bound(server, "/v1/completions", "CompletionRequest",
                 *({"prompt": "a", "max_tokens": 1, "compression": {"kv": {field: n}}} for n in (most, most + 1)))


def test_bounds_of_messages(server):
    good, bad = ({"messages": [*MESSAGES, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}] * n}]}
                 for n in (128, 129))
    assert_bound(server, "/tokenize", "TokenizeRequest", good, bad)


@pytest.mark.parametrize("path,param", [("/v1/completions", "prompt"), ("/v1/chat/completions", "messages")])
def test_text_far_too_long(server, path, param):
    """Refused by its length alone, unless somebody only wants it tokenized."""
    def body(text):
        return {"prompt": text} if param == "prompt" else {"messages": [{"role": "user", "content": text}]}
    e = wire.check_error(server.post(path, body("a" * 7_900_000)), 400, "context_length_exceeded", param)
    assert "at least" in e["message"] and e["n_prompt_tokens"] > e["n_ctx"]
    e = wire.check_error(server.post(path, body("word " * (e["n_ctx"] + 1))), 400, "context_length_exceeded", param)
    assert "at least" not in e["message"]
    r = server.post("/tokenize", body("a" * 2_000_000) if param == "messages" else {"content": "a" * 2_000_000})
    assert r.status_code == 200 and r.json()["count"] > e["n_ctx"]


@pytest.mark.parametrize("path,param,text", [
    ("/tokenize", "content", "a" * 7_900_000), ("/tokenize", "prompt", "a" * 7_900_000),
    ("/tokenize", "messages", [{"role": "user", "content": "a" * 7_900_000}]),
    ("/v1/completions", "prompt", ["a" * 600_000] * 12)])
def test_more_text_than_is_encoded(server, path, param, text):
    """No thread is held up for seconds by what no prompt can be, nor by many prompts that are as much together."""
    e = wire.check_error(server.post(path, {param: text}), 400, None, param)
    assert "at least" in e["message"] and "2097152 bytes" in e["message"]


def test_good_oddities(server):
    """Unknown fields are ignored, null is absent, integral floats are integers."""
    body = {"messages": MESSAGES, "max_tokens": 2.0, "n": None, "stop": None, "temperature": None, "user": 5,
            "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "verbosity": "low", "tools": None,
            "parallel_tool_calls": True, "logit_bias": {"foo": 0}, "seed": -9007199254740991,
            "some_future_field": [{"x": [1, {}]}]}
    r = server.post("/v1/chat/completions", body)
    assert r.status_code == 200, r.text
    wire.check("ChatCompletion", r.json())
    r = server.post("/v1/chat/completions", {"max_tokens": 2, "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}]})
    assert r.status_code == 200, r.text
