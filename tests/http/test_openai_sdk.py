"""The official Python client against the server."""

import asyncio

import openai
import pytest

HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as c:
        yield c


def test_models(client, server):
    assert [m.id for m in client.models.list()] == [server.model]
    assert client.models.retrieve(server.model).id == server.model


def test_chat(client, server):
    r = client.chat.completions.create(model=server.model, messages=HELLO, max_completion_tokens=8, temperature=0)
    assert r.object == "chat.completion" and r.id.startswith("chatcmpl-")
    assert r.choices[0].message.role == "assistant" and r.choices[0].message.content
    assert r.choices[0].finish_reason in ("stop", "length")
    assert 0 < r.usage.completion_tokens <= 8
    assert r.usage.total_tokens == r.usage.prompt_tokens + r.usage.completion_tokens
    assert r._request_id


def test_chat_stream(client, server):
    whole = client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=12, temperature=0)
    chunks = list(client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=12, temperature=0,
                                                 stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(c.choices[0].finish_reason is None for c in chunks[:-2])
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1


def test_several_choices(client, server):
    r = client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=5, n=3, seed=7)
    assert [c.index for c in r.choices] == [0, 1, 2]
    seen = {}
    for chunk in client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=5, n=3, seed=7,
                                                stream=True):
        c = chunk.choices[0]
        seen[c.index] = seen.get(c.index, "") + (c.delta.content or "")
    assert seen == {c.index: c.message.content for c in r.choices}


def test_chat_logprobs(client, server):
    r = client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=4, temperature=0, logprobs=True,
                                       top_logprobs=3)
    content = r.choices[0].logprobs.content
    assert len(content) >= r.usage.completion_tokens - 1
    for t in content:
        assert t.logprob <= 0 and len(t.top_logprobs) == 3
        assert [x.logprob for x in t.top_logprobs] == sorted((x.logprob for x in t.top_logprobs), reverse=True)
        if not t.token.startswith("bytes:"):
            assert bytes(t.bytes).decode() == t.token
    streamed = [t for c in client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=4,
                                                          temperature=0, logprobs=True, top_logprobs=3, stream=True)
                if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert streamed == content


def test_completion(client, server):
    r = client.completions.create(model=server.model, prompt="Once upon a time", max_tokens=8, temperature=0)
    assert r.object == "text_completion" and r.choices[0].text and r.choices[0].finish_reason in ("stop", "length")
    chunks = list(client.completions.create(model=server.model, prompt="Once upon a time", max_tokens=8,
                                            temperature=0, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == r.choices[0].text


def test_completion_prompts(client, server):
    r = client.completions.create(model=server.model, prompt=["One", "Two"], n=2, max_tokens=2, echo=True)
    assert [c.index for c in r.choices] == [0, 1, 2, 3]
    assert [c.text[:3] for c in r.choices] == ["One", "One", "Two", "Two"]


def test_echo_logprobs(client, server):
    text = "The quick brown fox"
    r = client.completions.create(model=server.model, prompt=text, max_tokens=0, echo=True, logprobs=2)
    lp = r.choices[0].logprobs
    assert r.choices[0].text == text and r.usage.completion_tokens == 0
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == len(lp.text_offset) == \
        r.usage.prompt_tokens
    assert lp.token_logprobs[0] is None and all(x <= 0 for x in lp.token_logprobs[1:])
    assert lp.text_offset == sorted(lp.text_offset)
    longer = client.completions.create(model=server.model, prompt=text, max_tokens=2, temperature=0, echo=True,
                                       logprobs=2)
    got = longer.choices[0].logprobs
    assert got.tokens[:len(lp.tokens)] == lp.tokens
    assert got.token_logprobs[1:len(lp.tokens)] == pytest.approx(lp.token_logprobs[1:], abs=1e-4)


def test_prompt_as_ids(client, server):
    ids = server.post("/tokenize", {"prompt": "Once upon a time"}).json()["tokens"]
    a = client.completions.create(model=server.model, prompt=ids, max_tokens=6, temperature=0)
    b = client.completions.create(model=server.model, prompt="Once upon a time", max_tokens=6, temperature=0)
    assert a.choices[0].text == b.choices[0].text and a.usage.prompt_tokens == len(ids)


def test_stop(client, server):
    full = client.completions.create(model=server.model, prompt="1, 2, 3, 4,", max_tokens=24, temperature=0)
    text = full.choices[0].text
    stop = text[3:5]
    r = client.completions.create(model=server.model, prompt="1, 2, 3, 4,", max_tokens=24, temperature=0, stop=[stop])
    assert r.choices[0].text == text[:text.index(stop)] and r.choices[0].finish_reason == "stop"


def test_seed(client, server):
    def once(seed):
        return client.completions.create(model=server.model, prompt="A", max_tokens=12, seed=seed).choices[0].text
    assert once(5) == once(5)


def test_logit_bias(client, server):
    token = server.post("/tokenize", {"content": " the"}).json()["tokens"][0]
    r = client.completions.create(model=server.model, prompt="A", max_tokens=3, temperature=0,
                                  logit_bias={str(token): 100})
    # A token's text begins with a space in a sentencepiece vocabulary, and an answer keeps it.
    assert r.choices[0].text.strip() == (server.post("/detokenize", {"tokens": [token] * 3}).json()["content"]).strip()


def test_compression_extension(client, server):
    r = client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=2,
                                       extra_body={"compression": {"kv": {"policy": "full"}}})
    kv = r.usage.model_extra["compression"]["kv"]
    assert kv["policy"] == "full" and kv["bytes"] > 0


def test_errors(client, server):
    with pytest.raises(openai.NotFoundError) as e:
        client.chat.completions.create(model="no-such-model", messages=HELLO)
    assert e.value.code == "model_not_found" and e.value.param == "model"
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model=server.model, messages=HELLO, temperature=9)
    assert e.value.param == "temperature" and e.value.code is None
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(model=server.model, prompt="word " * 200000, max_tokens=1)
    assert e.value.code == "context_length_exceeded" and e.value.param == "prompt"
    assert e.value.body["n_prompt_tokens"] > e.value.body["n_ctx"] > 0
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(model=server.model, prompt="word", max_tokens=10000000)
    assert e.value.code == "context_length_exceeded"


def test_async(server):
    async def one(client, i):
        if i % 2:
            r = await client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=6, temperature=0)
            return r.choices[0].message.content
        text = ""
        async for c in await client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=6,
                                                            temperature=0, stream=True):
            text += c.choices[0].delta.content or ""
        return text

    async def main():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, i) for i in range(8)))

    assert len(set(asyncio.run(main()))) == 1
