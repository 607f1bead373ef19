"""The server on the CUDA backend says what it says on the CPU. Here its kernels run on the host (tests/simt)."""

import concurrent.futures
import os
import pathlib
import subprocess

import pytest
import wire

SIMT = pathlib.Path(os.environ.get("WRING_SIMT", wire.ROOT / "build/obj/gcc-simt/bin/wring"))
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """stories260K as a folder, with a chat template of its own: the text goes on where the last message ends."""
    if not SIMT.exists():
        pytest.skip(f"{SIMT} is not built: run make simt")
    return wire.import_small(tmp_path_factory.mktemp("models") / "stories260K", TEMPLATE)


def serve(binary, model, *options):
    return wire.Server("--kv-size", "4M", "--max-batch", "64", "--max-seqs", "16", *options, binary=binary, model=model)


def both(model, *options):
    """The same model twice: on the CPU, and on the CUDA backend."""
    running = [serve(wire.BINARY, model, "--device", "cpu", *options), serve(SIMT, model, "--device", "cuda", *options)]
    yield running
    for s in running:
        assert s.stop() == 0


@pytest.fixture(scope="module")
def pair(model):
    """As they are served: inputs and cache rounded to bf16."""
    yield from both(model, "--kv-type", "bf16")


@pytest.fixture(scope="module")
def exact(model):
    """Nothing rounded: f32 inputs and cache."""
    yield from both(model, *EXACT)


def tell(server, text, n=24, **more):
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": n, "temperature": 0, "logprobs": True, **more}
    reply = server.post("/v1/chat/completions", body)
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    return choice["message"]["content"], [t["logprob"] for t in choice["logprobs"]["content"]]


EXACT = ["--kv-type", "f32", "--activations", "f32"]
STARTS = ["Once upon a time", "The little cat", "Tom and Mia", "One day, a big dog"]


def test_says_which_device(pair):
    assert any('device="cpu"' in line for line in pair[0].log)
    assert any('device="cuda:0 (' in line for line in pair[1].log)


@pytest.mark.parametrize("start", STARTS)
def test_same_tokens(pair, start):
    cpu, cuda = (tell(s, start) for s in pair)
    assert cpu[0] == cuda[0]
    assert max(abs(a - b) for a, b in zip(cpu[1], cuda[1])) < 0.1


@pytest.mark.parametrize("start", STARTS)
def test_same_logprobs(exact, start):
    cpu, cuda = (tell(s, start, n=40) for s in exact)
    assert cpu[0] == cuda[0]
    assert max(abs(a - b) for a, b in zip(cpu[1], cuda[1])) < 1e-4


def test_same_draws(exact):
    """One seed, one draw, whether the host saw all logits or what the device left of them."""
    for more in ({"temperature": 1.0, "top_p": 0.9}, {"temperature": 0.8, "top_k": 20}, {"temperature": 1.0},
                 {"temperature": 0.7, "frequency_penalty": 1.0, "logit_bias": {"40": 5}}):
        cpu, cuda = (tell(s, STARTS[0], seed=11, **more)[0] for s in exact)
        assert cpu == cuda, more


def test_echo_scores_the_prompt(exact):
    body = {"prompt": STARTS[1], "max_tokens": 4, "echo": True, "logprobs": 2, "temperature": 0}
    cpu, cuda = (s.post("/v1/completions", body).json()["choices"][0]["logprobs"] for s in exact)
    assert cpu["tokens"] == cuda["tokens"]
    assert max(abs(a - b) for a, b in zip(cpu["token_logprobs"][1:], cuda["token_logprobs"][1:])) < 1e-4


@pytest.mark.parametrize("policy", ["snapkv", "ems", "keydiff"])
def test_same_when_pressed(exact, policy):
    """After the prompt and again while it answers. The device probes; keydiff asks for every key and presses on the host."""
    body = {"prompt": [1] + [259 + 7 * i % 240 for i in range(299)], "max_tokens": 150, "ignore_eos": True, "temperature": 0,
            "logprobs": 0, "compression": {"kv": {"policy": policy, "budget": 64}}}
    cpu, cuda = (s.post("/v1/completions", body).json() for s in exact)
    kv, other = (r["usage"]["compression"]["kv"] for r in (cpu, cuda))
    assert kv["kept"] == other["kept"] and abs(kv["mass_mean"] - other["mass_mean"]) < 1e-3
    cpu, cuda = (r["choices"][0]["logprobs"] for r in (cpu, cuda))
    assert cpu["tokens"] == cuda["tokens"]
    assert max(abs(a - b) for a, b in zip(cpu["token_logprobs"], cuda["token_logprobs"])) < 1e-2


def test_neighbours_change_nothing(pair):
    """Alone or beside others, recorded passes and all: the same bits."""
    alone = [tell(pair[1], s, n=16) for s in STARTS]
    with concurrent.futures.ThreadPoolExecutor(len(STARTS)) as pool:
        together = list(pool.map(lambda s: tell(pair[1], s, n=16), STARTS))
    assert alone == together


def test_weights_of_every_form(model):
    for form in ("bf16", "f16"):
        servers = [serve(wire.BINARY, model, "--device", "cpu", "--weights", form),
                   serve(SIMT, model, "--device", "cuda", "--weights", form)]
        cpu, cuda = (tell(s, STARTS[0], n=12) for s in servers)
        for s in servers:
            s.stop()
        assert cpu[0] == cuda[0], form


def same_text(model, n, *options):
    servers = [serve(wire.BINARY, model, "--device", "cpu", *EXACT, *options), serve(SIMT, model, "--device", "cuda", *EXACT, *options)]
    cpu, cuda = (tell(s, STARTS[0], n=n) for s in servers)
    for s in servers:
        assert s.stop() == 0
    assert cpu[0] == cuda[0], options
    assert max(abs(a - b) for a, b in zip(cpu[1], cuda[1])) < 1e-3, options


def test_pressed_folder(model, tmp_path):
    """What the quantizer writes: matrices whose width a form does not take stay in others, inputs are rotated or not."""
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a little cat. The cat had a red ball. " * 20)
    for form in ("trellis2", "trellis3", "trellis4", "planes1", "planes3g32", "planes8", "pvq2"):
        subprocess.run([wire.BINARY, "quantize", model, tmp_path / form, "--codec", form, "--calibrate", text, "--tokens", "256",
                        "--context", "128"], check=True, capture_output=True)
        same_text(tmp_path / form, 12)


def test_pool_that_does_not_fit(model):
    run = subprocess.run([SIMT, "serve", model, "--device", "cuda", "--kv-size", "100G"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "cuda:0" in run.stderr and "--kv-size" in run.stderr, run.stderr


def test_auto_falls_back(model):
    s = serve(SIMT, model, "--device", "auto", "--kv-size", "10G")
    assert any("auto=cpu" in line for line in s.log)
    tell(s, STARTS[0], n=2)
    assert s.stop() == 0
