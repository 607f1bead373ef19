"""Commands that measure: what they print is what was asked for, and what the server says."""

import json
import math
import subprocess

import pytest
import wire

TEXT = "Lily found a red ball in the park. \"Can we play with it, Tom?\" she asked. Tom said yes, and they ran and laughed. " * 60


def run(*args):
    return subprocess.run([wire.BINARY, *args, "--device", "cpu"], capture_output=True, text=True, timeout=120)


def rows(*args):
    r = run(*args, "--json")
    assert r.returncode == 0, r.stderr
    return [json.loads(line, parse_constant=pytest.fail) for line in r.stdout.splitlines()]


@pytest.fixture(scope="module")
def server(folder):
    s = wire.Server("--device", "cpu", "--kv-size", "16M", model=folder)
    yield s
    assert s.stop() == 0


@pytest.mark.parametrize("ctx, most", [(None, 0), (33, 0), (64, 3)])
def test_perplexity_is_the_servers(folder, server, tmp_path, ctx, most):
    """Whole chunks whose first token is BOS; what stands after the first token of the second half is judged."""
    (tmp_path / "text").write_text(TEXT)
    options = ["--chunks", str(most)] + (["--ctx", str(ctx)] if ctx else [])
    row, = rows("eval", "ppl", folder, tmp_path / "text", *options)
    ctx = ctx or 512
    ids = server.post("/tokenize", {"content": TEXT, "add_special": True}).json()["tokens"]
    chunks = [ids[:1] + ids[i + 1:i + ctx] for i in range(0, len(ids) - ctx + 1, ctx)]
    chunks = chunks[:most or None]
    assert len(chunks) > 1 and (row["chunks"], row["ctx"]) == (len(chunks), ctx)
    nll = []
    for chunk in chunks:
        r = server.post("/v1/completions", {"prompt": chunk, "max_tokens": 0, "echo": True, "logprobs": 0})
        nll += [-p for p in r.json()["choices"][0]["logprobs"]["token_logprobs"][ctx // 2 + 1:]]
    mean = sum(nll) / len(nll)
    error = math.exp(mean) * math.sqrt(sum((x - mean) ** 2 for x in nll) / len(nll) / (len(nll) - 1))
    assert row["tokens"] == len(nll) == len(chunks) * (ctx - ctx // 2 - 1)
    assert row["ppl"] == pytest.approx(math.exp(mean), rel=1e-3) and row["err"] == pytest.approx(error, rel=1e-2)


@pytest.mark.parametrize("code, text, options, told", [
    (2, "", [], "has 0 tokens; one chunk of --ctx 512 is needed"),
    (2, "Once upon a time.", [], "one chunk of --ctx 512 is needed"),
    (2, TEXT, ["--ctx", "3"], "ctx: a chunk has at least 4 tokens, not 3"),
])
def test_perplexity_of_too_little(folder, tmp_path, code, text, options, told):
    (tmp_path / "text").write_text(text)
    r = run("eval", "ppl", folder, tmp_path / "text", *options)
    assert r.returncode == code and told in r.stderr and not r.stdout


def test_perplexity_of_no_model(folder, tmp_path):
    (tmp_path / "text").write_text(TEXT)
    for model in (tmp_path, tmp_path / "text"):
        r = run("eval", "ppl", model, tmp_path / "text")
        assert r.returncode == 1 and f"wring: {model}" in r.stderr and not r.stdout


def test_bench(folder):
    got = rows("bench", folder, "--prompts", "8,40", "--batches", "1,3", "--depths", "0,16", "--repeat", "2")
    assert [(r["test"], r["batch"], r["depth"]) for r in got] == [
        ("prefill 8", 1, 0), ("prefill 40", 1, 0), ("decode", 1, 0), ("decode", 3, 0), ("decode", 1, 16), ("decode", 3, 16)]
    for r in got:
        assert r["tok_s"] > 0 and r["gop_s"] >= 0 and r["peak_frac"] >= 0
        if r["test"] == "decode":
            assert r["gb_s"] >= 0 and r["bw_frac"] >= 0
            # two for each weight, four for each of 5 layers' 64 query elements and cached token
            ops = 2 * (5 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 172) + 64 * 512) + 4 * 5 * 64 * (r["depth"] + 1 + 24)
            assert r["gop_s"] == pytest.approx(r["tok_s"] * ops / 1e9, abs=0.06)
        else:
            assert r["gb_s"] is None and r["bw_frac"] is None


def test_bench_kv(folder):
    got = rows("bench", folder, "--kv", "--length", "600", "--policies", "window,snapkv", "--budgets", "64,256", "--repeat", "1")
    assert [(r["policy"], r["budget"]) for r in got] == [
        ("whole, 512 tokens", 0), ("whole", 0), ("window", 64), ("window", 256), ("snapkv", 64), ("snapkv", 256)]
    short, whole, *pressed = got
    assert all(r["mib"] > 0 and r["tok_s"] > 0 and r["of_short"] > 0 and r["of_whole"] > 0 for r in got)
    assert whole["share"] == 100 and 80 < short["share"] < 100 and short["of_short"] == whole["of_whole"] == 1
    assert all(r["press_ms"] is None for r in (short, whole))
    for r in pressed:
        assert r["press_ms"] >= 0 and r["press_share"] >= 0 and r["mib"] < whole["mib"] and 0 <= r["again"] < 100
        assert r["share"] == pytest.approx(100 * r["mib"] / whole["mib"], abs=2)
    assert all(a["mib"] < b["mib"] for a, b in (pressed[:2], pressed[2:])), "a larger budget takes more"


@pytest.mark.parametrize("options, told", [
    ("--prompts 8,0", "prompts: "),
    ("--batches 1,,2", "batches: "),
    ("--depths -1", "depths: "),
    ("--kv --budgets 64,x", "budgets: "),
    ("--kv --length 511", "length: 511 is less than 512"),
])
def test_bench_refuses(folder, options, told):
    r = run("bench", folder, *options.split())
    assert r.returncode == 2 and f"wring: {told}" in r.stderr and not r.stdout
