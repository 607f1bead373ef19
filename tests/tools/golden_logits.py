#!/usr/bin/env python3
"""Makes tests/golden/logits/*.bin: what PyTorch and transformers say a model's next-token distributions are.

usage: golden_logits.py smollm2 MODEL.gguf TEXT OUT.bin
       golden_logits.py llama2c MODEL.bin TOKENIZER.model TEXT OUT.bin

A file holds 4 sequences of 500 tokens of a text; for every position the 48 most likely next tokens with their
log-probabilities, computed in float32 with eager attention. Little-endian:
    char magic[4] = "WLOG"; int32 n_seqs, length, k;
    then for each sequence: int32 token[length]; then for each position: int32 id[k], float32 logprob[k].
"""
import struct
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

SEQS, LENGTH, K = 4, 500, 48


def smollm2(path):
    folder, name = path.rsplit("/", 1)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager")
    from gguf import GGUFReader
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    field = GGUFReader(path).fields
    tokens = field["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in field["tokenizer.ggml.merges"].contents()]
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    return model, lambda text: tok.encode(text).ids


def llama2c(path, tokenizer):
    """llama2.c version 0: seven int32, then float32 tensors; q and k rows are in interleaved rope order."""
    raw = open(path, "rb").read()
    dim, ffn, layers, heads, kv_heads, vocab, ctx = struct.unpack("7i", raw[:28])
    tied, vocab = vocab > 0, abs(vocab)
    data, at = np.frombuffer(raw, np.float32, offset=28), 0

    def take(*shape):
        nonlocal at
        n = int(np.prod(shape))
        at += n
        return torch.from_numpy(data[at - n:at].reshape(shape).copy())

    d = dim // heads
    config = LlamaConfig(hidden_size=dim, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
                         num_key_value_heads=kv_heads, vocab_size=vocab, max_position_embeddings=ctx,
                         rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=tied, attn_implementation="eager")
    model = LlamaForCausalLM(config)
    halves = lambda w, n: w.view(n, d // 2, 2, dim).transpose(1, 2).reshape(n * d, dim)
    emb, att = take(vocab, dim), take(layers, dim)
    q, k, v = take(layers, heads * d, dim), take(layers, kv_heads * d, dim), take(layers, kv_heads * d, dim)
    o, norm = take(layers, dim, heads * d), take(layers, dim)
    w1, w2, w3 = take(layers, ffn, dim), take(layers, dim, ffn), take(layers, ffn, dim)
    state = {"model.embed_tokens.weight": emb, "model.norm.weight": take(dim)}
    take(ctx, d // 2), take(ctx, d // 2)
    state["lm_head.weight"] = emb if tied else take(vocab, dim)
    for i in range(layers):
        p = f"model.layers.{i}."
        state |= {p + "input_layernorm.weight": att[i], p + "post_attention_layernorm.weight": norm[i],
                  p + "self_attn.q_proj.weight": halves(q[i], heads), p + "self_attn.k_proj.weight": halves(k[i], kv_heads),
                  p + "self_attn.v_proj.weight": v[i], p + "self_attn.o_proj.weight": o[i],
                  p + "mlp.gate_proj.weight": w1[i], p + "mlp.down_proj.weight": w2[i], p + "mlp.up_proj.weight": w3[i]}
    model.load_state_dict(state, strict=False)
    import sentencepiece
    sp = sentencepiece.SentencePieceProcessor(model_file=tokenizer)
    return model, lambda text: [1] + sp.encode(text)


def main():
    kind, out, text = sys.argv[1], sys.argv[-1], open(sys.argv[-2], encoding="utf-8").read()[:40000]
    model, encode = smollm2(sys.argv[2]) if kind == "smollm2" else llama2c(sys.argv[2], sys.argv[3])
    model.eval()
    ids = encode(text)
    length = min(LENGTH, model.config.max_position_embeddings)
    seqs = SEQS * LENGTH // length
    with open(out, "wb") as f, torch.no_grad():
        f.write(b"WLOG" + struct.pack("3i", seqs, length, K))
        for s in range(seqs):
            part = ids[s * length:(s + 1) * length]
            assert len(part) == length
            logp = torch.log_softmax(model(torch.tensor([part])).logits[0].double(), -1)
            top = logp.topk(K)
            f.write(np.array(part, np.int32).tobytes())
            for i in range(length):
                f.write(top.indices[i].numpy().astype(np.int32).tobytes())
                f.write(top.values[i].numpy().astype(np.float32).tobytes())
            print(f"sequence {s}: perplexity {torch.exp(-logp[torch.arange(length - 1), torch.tensor(part[1:])].mean()):.4f}")


main()
