"""Requests whose KV cache is pressed: what they ask for, what they get, what they are told. stories260K, 512 tokens of context."""

import concurrent.futures
import random
import subprocess

import jsonschema
import openai
import pytest
import wire

TEMPLATE = ("{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}")
LAYERS, HEADS, BUDGET, PROMPT = 5, 4, 64, 300
KV = {"policy": "ems", "budget": BUDGET}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    if not wire.BINARY.exists():
        pytest.skip(f"{wire.BINARY} is not built")
    return wire.import_small(tmp_path_factory.mktemp("models") / "stories260K", TEMPLATE)


def serve(model, *options):
    return wire.Server("--device", "cpu", "--kv-size", "16M", "--max-seqs", "32", *options, model=model)


@pytest.fixture(scope="module")
def small(model):
    s = serve(model)
    yield s
    s.wait_idle()
    assert s.stop() == 0


def ids(n, seed=0):
    """A prompt of n tokens: words of the vocabulary, the beginning-of-text token first."""
    draw = random.Random(seed)
    return [1] + [draw.randrange(259, 500) for _ in range(n - 1)]


def complete(server, prompt, kv=None, **more):
    body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True, "logprobs": 0, **more}
    if kv is not None:
        body["compression"] = {"kv": kv}
    wire.check("CompletionRequest", body)
    r = server.post("/v1/completions", body)
    assert r.status_code == 200, r.text
    return wire.check("Completion", r.json())


def answer(reply):
    return [(c["text"], c["logprobs"]["token_logprobs"]) for c in reply["choices"]]


def usage(reply):
    return reply["usage"]["compression"]["kv"]


def test_numbers(small):
    kv = usage(complete(small, ids(PROMPT), KV))
    assert kv["policy"] == "ems" and kv["budget"] == BUDGET
    assert 0 < kv["bytes"] < kv["full_bytes"] * 0.6
    assert BUDGET * LAYERS * HEADS * 0.5 < kv["kept"] <= BUDGET * LAYERS * HEADS
    assert 0 < kv["merged"] <= (PROMPT - 1) * LAYERS * HEADS - kv["kept"] + 16 * LAYERS * HEADS
    assert 0 < kv["mass_min"] <= kv["mass_mean"] <= 1.0001
    assert "raised" not in kv and "detail" not in kv


def test_full_says_little(small):
    for kv in (None, {}, {"policy": "full"}):
        got = usage(complete(small, ids(PROMPT), kv))
        assert sorted(got) == ["bytes", "full_bytes", "policy"] and got["policy"] == "full"


def test_every_policy(small):
    full, *pressing = small.get("/v1/models").json()["data"][0]["meta"]["kv_policies"]
    assert full == "full" and pressing
    for policy in pressing:
        kv = usage(complete(small, ids(PROMPT), {"policy": policy, "budget": BUDGET}))
        assert kv["policy"] == policy and 0 < kv["kept"] <= BUDGET * LAYERS * HEADS, kv
        assert kv["bytes"] < kv["full_bytes"]


@pytest.mark.parametrize("budget", [PROMPT + 200, "1MiB", 0.9999])
def test_a_prompt_that_fits_is_untouched(small, budget):
    full = complete(small, ids(PROMPT), {"policy": "full", "recompute": True})
    fits = complete(small, ids(PROMPT), {"policy": "ems", "budget": budget, "recompute": True})
    assert answer(fits) == answer(full)
    assert "kept" not in usage(fits) and usage(fits)["budget"] >= PROMPT


def test_budgets_are_equal_in_three_forms(small):
    """64 tokens, the same as a part of the prompt, and as bytes: the same answer."""
    tokens = complete(small, ids(PROMPT, 1), KV)
    part = complete(small, ids(PROMPT, 1), {**KV, "budget": BUDGET / PROMPT})
    assert usage(part)["budget"] == BUDGET and answer(part) == answer(tokens)
    full = usage(complete(small, ids(PROMPT, 1)))["full_bytes"] / (PROMPT + 16)
    in_bytes = usage(complete(small, ids(PROMPT, 1), {**KV, "budget": f"{int(full * BUDGET / 1024)}KiB"}))
    assert BUDGET / 2 < in_bytes["budget"] <= BUDGET


@pytest.mark.parametrize("text", ["400KiB", "1.5MiB", "1.5M", "1GB", "16", "16.", "0.25", ".5", "5.e", ".", "1.2.3", "", "MiB", "1e3", "4 MiB", "4TiB"])
def test_budgets_are_words_of_the_schema(small, text):
    body = {"prompt": ids(PROMPT), "max_tokens": 1, "compression": {"kv": {"policy": "ems", "budget": text}}}
    try:
        wire.check("CompletionRequest", body)
        described = True
    except jsonschema.ValidationError:
        described = False
    assert (small.post("/v1/completions", body).status_code == 200) == described


def test_options_change_the_answer(small):
    """Each is obeyed: what is kept or answered differs from the policy's own way."""
    def told(**options):
        r = complete(small, ids(PROMPT, 2), {**KV, "detail": True, **options}, max_tokens=24)
        return answer(r), usage(r)["detail"]
    own = told()
    assert told() == own
    for options in ({"merge": "none"}, {"merge": "votes"}, {"merge": "values"}, {"merge": "mean"}, {"split": "pyramid"},
                    {"split": "ada"}, {"sinks": 12}, {"window": 8}, {"local": 0}, {"pool": 0}, {"phi": 1}, {"lambda": 50.0},
                    {"queries": 16}):
        assert told(**options) != own, options
    drawn = [told(policy="random", seed=s) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] and drawn[0][1] != drawn[2][1]


@pytest.mark.parametrize("preset,share", [("quality", 0.25), ("balanced", 0.1), ("extreme", 0.03)])
def test_presets(small, preset, share):
    kv = usage(complete(small, ids(400), {"preset": preset}))
    assert kv["budget"] == max(16, round(400 * share))


def test_the_guard_gives_more(small):
    floor = {"policy": "window", "budget": 16, "mass_floor": 0.999}
    kv = usage(complete(small, ids(PROMPT, 3), floor))
    assert kv["budget"] == 16 and 16 < kv["raised"] <= 32
    more = usage(complete(small, ids(PROMPT, 3), {**floor, "budget_max": 128}))
    assert kv["raised"] < more["raised"] <= 128 and more["mass_mean"] > kv["mass_mean"]


BAD = [
    ({"policy": "nope"}, "policy"), ({"policy": 1}, "policy"), ({"preset": "best"}, "preset"), ({"merge": "x"}, "merge"),
    ({"split": "x"}, "split"), ({**KV, "budget": 15}, "budget"), ({**KV, "budget": 1.5}, "budget"),
    ({**KV, "budget": "4 MiB"}, "budget"), ({**KV, "budget": "1KiB"}, "budget"), ({"policy": "full", "budget": 64}, "budget"),
    ({**KV, "mass_floor": 0.5, "budget_max": 32}, "budget_max"), ({"mass_floor": 2}, "mass_floor"), ({"sinks": -1}, "sinks"),
    ({"window": 0}, "window"), ({"tail": 0}, "tail"), ({"local": 2}, "local"), ({"pool": -1}, "pool"), ({"phi": -1}, "phi"),
    ({"lambda": 0}, "lambda"), ({"queries": 0}, "queries"), ({"seed": "x"}, "seed"), ({"protect_system": 1}, "protect_system"),
    ({"recompute": "no"}, "recompute"), ({"detail": 1}, "detail"),
]


@pytest.mark.parametrize("kv,field", BAD)
def test_bad(small, kv, field):
    r = small.post("/v1/completions", {"prompt": ids(100), "compression": {"kv": kv}})
    wire.check_error(r, 400, None, "compression.kv." + field)


def test_detail(small):
    d = usage(complete(small, ids(PROMPT), {**KV, "detail": True}))["detail"]
    assert len(d["slots"]) == LAYERS and all(len(h) == HEADS for h in d["slots"])
    assert sum(map(sum, d["slots"])) <= BUDGET * LAYERS * HEADS
    assert len(d["survival"]) == PROMPT and d["survival"][:4] == [1, 1, 1, 1]
    assert sum(d["survival"]) == pytest.approx(sum(map(sum, d["slots"])) / LAYERS / HEADS, rel=0.05)
    assert "detail" not in usage(complete(small, ids(20), {**KV, "detail": True})), "nothing was pressed"


@pytest.mark.parametrize("with_usage", [False, True])
def test_stream_with_detail(small, with_usage):
    whole = complete(small, ids(PROMPT), {**KV, "detail": True})
    body = {"prompt": ids(PROMPT), "max_tokens": 16, "temperature": 0, "ignore_eos": True, "stream": True,
            "compression": {"kv": {**KV, "detail": True}}}
    if with_usage:
        body["stream_options"] = {"include_usage": True}
    got = wire.events(small.post("/v1/completions", body, stream=True))
    for e in got:
        wire.check("CompletionChunk", e)
        assert ("usage" in e) == with_usage
    assert got[0]["choices"] == [] and got[0]["compression"]["kv"]["detail"] == usage(whole)["detail"]
    assert all("compression" not in e for e in got[1:])
    assert "".join(e["choices"][0]["text"] for e in got[1:] if e["choices"]) == whole["choices"][0]["text"]
    if with_usage:
        kv = got[-1]["usage"]["compression"]["kv"]
        assert {k: v for k, v in usage(whole).items() if k != "detail"} == kv


def test_chat_by_the_sdk(small):
    with openai.OpenAI(base_url=small.url + "/v1", api_key="none", max_retries=0) as client:
        messages = [{"role": "system", "content": "You tell stories."},
                    {"role": "user", "content": "Once upon a time there was a little girl. " * 9 + "Who was there?"}]
        ask = {"model": small.model, "messages": messages, "max_tokens": 12, "temperature": 0,
               "extra_body": {"compression": {"kv": {"policy": "ems", "budget": 48, "detail": True}}}}
        r = client.chat.completions.create(**ask)
        kv = r.usage.model_extra["compression"]["kv"]
        assert kv["budget"] == 48 and kv["kept"] > 0 and len(kv["detail"]["survival"]) == r.usage.prompt_tokens
        chunks = list(client.chat.completions.create(**ask, stream=True))
        assert chunks[0].choices == [] and chunks[0].model_extra["compression"]["kv"]["detail"] == kv["detail"]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == r.choices[0].message.content


def test_system_message_is_protected(small):
    """Its tokens survive, as far as a quarter of the budget reaches; without protection some do not."""
    messages = [{"role": "system", "content": "Tom had a red ball and a blue car and a big dog."},
                {"role": "user", "content": "Once upon a time there was a little girl. " * 10 + "Who?"}]
    n = small.post("/tokenize", {"messages": messages[:1], "add_generation_prompt": False}).json()["count"] - 1
    lost = []
    for protect in (True, False):
        r = small.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1, "compression": {"kv": {
            "policy": "window", "budget": 96, "protect_system": protect, "detail": True}}}).json()
        lost.append(sum(s < 1 for s in usage(r)["detail"]["survival"][:min(n, 24)]))
    assert lost[0] == 0 < lost[1]


def test_choices_add_up(small):
    one = complete(small, ids(PROMPT, 4), KV)
    three = complete(small, ids(PROMPT, 4), KV, n=3)
    assert answer(three) == answer(one) * 3
    a, b = usage(one), usage(three)
    assert (b["kept"], b["merged"], b["bytes"]) == (3 * a["kept"], 3 * a["merged"], 3 * a["bytes"])
    assert b["budget"] == a["budget"] and b["mass_min"] == a["mass_min"] and b["mass_mean"] == a["mass_mean"]


def told_at_offsets(server, prompt, **more):
    """The echo. Every token's text stands at its offset, but for the space that only the tokens have."""
    choice = complete(server, prompt, echo=True, max_tokens=3, ignore_eos=False, **more)["choices"][0]
    text, lp = choice["text"], choice["logprobs"]
    end = 0
    for token, at in zip(lp["tokens"], lp["text_offset"]):
        if not token.startswith("bytes:") and token != "<s>":
            told = token if text.startswith(token, at) else token[1:]
            assert text.startswith(told, at) and (told == token or token[0] == " "), (token, at, text)
            assert at == end, (token, at, end)
            end = at + len(told)
        elif token == "<s>" and text.startswith(token, at):
            end = at + len(token)
    assert end == len(text) or text.endswith("\ufffd")
    return text, lp["text_offset"]


def test_echo_offsets(small):
    """The space that a sentencepiece vocabulary puts in front of a text is in its tokens but not in the text."""
    text, offsets = told_at_offsets(small, "Once upon a")
    assert text.startswith("Once upon a") and offsets[:2] == [0, 0]
    for prompt in (" Once upon", "  a", "One.<s>Two<s> three", "<s>Once", "A man", "\nOnce"):
        assert told_at_offsets(small, prompt)[0].startswith(prompt)
    tokens = small.post("/tokenize", {"prompt": "Once upon a"}).json()["tokens"]
    for prompt in (tokens, tokens[1:], tokens + tokens):
        assert "Once upon a" in told_at_offsets(small, prompt)[0]


def test_echo_scores_come_first(small):
    """The prompt's log-probabilities are those of the full cache: it is pressed after it was read."""
    full = complete(small, ids(PROMPT), {"policy": "full"}, echo=True, max_tokens=1)
    pressed = complete(small, ids(PROMPT), KV, echo=True, max_tokens=1)
    assert answer(pressed)[0][1][:PROMPT] == answer(full)[0][1][:PROMPT]


def test_neighbours_change_nothing(small):
    asks = [(ids(200 + 20 * i, i), {"policy": p, "budget": 32 + 8 * i} if p else None)
            for i, p in enumerate(["ems", None, "window", "snapkv", "ems", "h2o", None, "ems-r"])]
    alone = [complete(small, *a) for a in asks]
    with concurrent.futures.ThreadPoolExecutor(len(asks)) as pool:
        together = list(pool.map(lambda a: complete(small, *a), asks))
    assert [answer(r) for r in alone] == [answer(r) for r in together]
    assert [usage(r).get("kept") for r in alone] == [usage(r).get("kept") for r in together]


def test_turns_hit_the_prefix_cache(model):
    """A conversation that grows, pressed every time, finds what a full one finds but for the queries of its last tokens."""
    found = {}
    for policy in ("full", "ems"):
        server = serve(model)
        kv = {"policy": "full"} if policy == "full" else KV
        prompt, found[policy] = ids(150, 5), []
        for turn in range(5):
            found[policy].append(complete(server, prompt, kv, max_tokens=4)["usage"]["prompt_tokens_details"]["cached_tokens"])
            prompt = prompt + ids(60, 10 + turn)[1:]
        before = found[policy][-1]
        again = complete(server, prompt[:300], {**kv, "recompute": True}, max_tokens=4)["usage"]
        assert before > 100 and again["prompt_tokens_details"]["cached_tokens"] == 0
        assert server.stop() == 0
    for full, pressed in zip(found["full"], found["ems"]):
        assert full - 32 <= pressed <= full, found


def test_recompute_gives_the_same(small):
    complete(small, ids(PROMPT, 6), KV)
    a = complete(small, ids(PROMPT, 6), KV)
    b = complete(small, ids(PROMPT, 6), {**KV, "recompute": True})
    assert a["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert b["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert answer(a) == answer(b) and usage(a)["kept"] == usage(b)["kept"]


def test_metrics(small):
    names = ["kv_compactions_total", "kv_slots_evicted_total", "kv_slots_merged_total", "kv_compaction_seconds_count",
             "kv_compression_ratio_count", "kv_retained_mass_count"]
    before = {n: small.metric("wring_" + n) for n in names}
    kv = usage(complete(small, ids(PROMPT, 7), KV, max_tokens=1))
    small.wait_idle()
    rise = {n: small.metric("wring_" + n) - before[n] for n in names}
    assert rise["kv_compactions_total"] == rise["kv_compaction_seconds_count"] == 1
    assert rise["kv_compression_ratio_count"] == rise["kv_retained_mass_count"] == 1
    assert rise["kv_slots_merged_total"] == kv["merged"] and rise["kv_slots_evicted_total"] >= kv["merged"]
    kinds = {k: small.metric("wring_kv_pool_pages", kind=k) for k in ("wide", "narrow", "cached", "free")}
    assert kinds["wide"] == kinds["narrow"] == small.metric("wring_kv_narrow_pages") == 0
    assert kinds["cached"] > 0 and sum(kinds.values()) == small.metric("wring_kv_pages")
    text = small.get("/metrics").text
    for n in ("kv_swaps_total", "kv_budgets_raised_total"):
        assert f"# TYPE wring_{n} counter" in text


def test_server_defaults_and_ceiling(model):
    server = serve(model, "--kv-policy", "snapkv", "--kv-budget", "0.2", "--kv-budget-max", "96", "--kv-mass-floor", "0.999")
    kv = usage(complete(server, ids(PROMPT)))
    assert kv["policy"] == "snapkv" and kv["budget"] == 60 and 60 < kv["raised"] <= 96
    policies = server.get("/v1/models").json()["data"][0]["meta"]["kv_policies"]
    assert "full" not in policies
    for policy in policies:
        assert usage(complete(server, ids(PROMPT), {"policy": policy}))["policy"] == policy
    for kv, field in (({"policy": "full"}, "policy"), ({"tail": 129}, "tail"),
                      ({"budget": 97}, "budget"), ({"budget": 0.5}, "budget"), ({"preset": "quality", "budget": 97}, "budget"),
                      ({"budget_max": 97}, "budget_max")):
        r = server.post("/v1/completions", {"prompt": ids(PROMPT), "compression": {"kv": kv}})
        assert "ceiling" in wire.check_error(r, 400, None, "compression.kv." + field)["message"]
    assert server.stop() == 0


def test_layer_major(model, small):
    """A prompt that the pool cannot hold whole is computed layer by layer, and gets what a large pool gives it."""
    server = serve(model, "--ctx", "512", "--kv-size", "306K")  # 8 pages of 32 tokens in each of 5 layers
    ask = (ids(PROMPT, 8), KV)
    here, there = complete(server, *ask), complete(small, *ask)
    assert answer(here) == answer(there) and usage(here) == usage(there)
    assert server.metric("wring_kv_layer_major_total") == 1 and small.metric("wring_kv_layer_major_total") == 0
    r = server.post("/v1/completions", {"prompt": ids(PROMPT), "max_tokens": 4})
    why = wire.check_error(r, 400, "context_length_exceeded", "prompt")["message"]
    assert "pool holds 256 tokens" in why and "context length of 512" in why and "compression.kv" in why
    r = server.post("/v1/completions", {"prompt": ids(513), "max_tokens": 4, "compression": {"kv": KV}})
    why = wire.check_error(r, 400, "context_length_exceeded", "prompt")["message"]
    assert "maximum context length is 512 tokens" in why and "pool" not in why
    server.wait_idle()
    assert server.stop() == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_pool_without_room_to_press(model, stream):
    """What the pool can never hold is refused before an answer begins, whether it would be streamed or not."""
    server = serve(model, "--kv-size", "192K")  # 5 pages of 32 tokens in each of 5 layers
    r = server.post("/v1/completions", {"prompt": [ids(20), ids(145)], "stream": stream,
                                        "compression": {"kv": {**KV, "split": "mass"}}})
    why = wire.check_error(r, 400, "context_length_exceeded", "compression.kv")
    assert "pressing a prompt of 145" in why["message"] and why["n_prompt_tokens"] == 145 and why["n_ctx"] == 160
    assert server.stop() == 0


def test_server_without_queries(model):
    server = serve(model, "--kv-samples", "0")
    r = server.post("/v1/completions", {"prompt": ids(PROMPT), "compression": {"kv": KV}})
    assert server.get("/v1/models").json()["data"][0]["meta"]["kv_policies"] == ["full"]
    assert "keeps none" in wire.check_error(r, 400, None, "compression.kv.policy")["message"]
    assert usage(complete(server, ids(PROMPT)))["policy"] == "full"
    assert server.stop() == 0


def test_sliding_window():
    server = serve(wire.ROOT / "tests/golden/archs/mistral-window")
    assert server.get("/v1/models").json()["data"][0]["meta"]["kv_policies"] == ["full"]
    r = server.post("/v1/completions", {"prompt": [1] * 90, "compression": {"kv": {"policy": "ems", "budget": 32}}})
    assert "sliding window" in wire.check_error(r, 400, "unsupported_value", "compression.kv.policy")["message"]
    assert server.stop() == 0


@pytest.mark.parametrize("options,says", [
    (["--kv-policy", "magic"], "kv-policy"), (["--kv-budget", "5"], "kv-budget"), (["--kv-budget-max", "all"], "kv-budget-max"),
    (["--kv-policy", "ems", "--kv-samples", "0"], "kv-samples"), (["--kv-samples", "3"], "0 1 2 4 8 16 32")])
def test_bad_server_options(model, options, says):
    run = subprocess.run([wire.BINARY, "serve", model, "--device", "cpu", *options], capture_output=True, text=True, timeout=60)
    assert run.returncode > 0 and says in run.stderr, run.stderr


@pytest.mark.parametrize("name", ["quality", "balanced", "extreme"])
def test_profiles(model, name):
    server = serve(model, "--config", str(wire.ROOT / f"configs/kv-{name}.yaml"))
    a, b = complete(server, ids(400, 8)), complete(server, ids(400, 8), {"preset": name})
    assert answer(a) == answer(b) and usage(a) == usage(b) and usage(a)["kept"] > 0
    assert server.stop() == 0
