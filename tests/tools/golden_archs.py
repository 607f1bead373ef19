#!/usr/bin/env python3
"""Makes tests/golden/archs/*: tiny random models of every variant of the llama family, and what transformers says of them.

usage: golden_archs.py TOKENIZER.model OUT      (a sentencepiece model of 512 tokens, as `wring import llama2c` writes)

Each folder is a Hugging Face model with bfloat16 weights (seeded noise) and expected.txt: for each of 100 tokens its id
and, from the second on, its log-probability after the ones before it, computed in float32 with eager attention.
"""
import os
import shutil
import sys

import torch
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM,
                          Qwen3Config, Qwen3ForCausalLM)

BASE = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=512, max_position_embeddings=1024)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
CASES = {
    "llama3-scaling": (LlamaForCausalLM, LlamaConfig(**BASE, rope_scaling=LLAMA3, rope_theta=500.0)),
    "linear-scaling": (LlamaForCausalLM, LlamaConfig(**BASE, rope_scaling=dict(rope_type="linear", factor=4.0))),
    "mistral-window": (MistralForCausalLM, MistralConfig(**BASE, sliding_window=24)),
    "qwen2-biases": (Qwen2ForCausalLM, Qwen2Config(**BASE, use_sliding_window=False, tie_word_embeddings=True)),
    "qwen3-head-norms": (Qwen3ForCausalLM, Qwen3Config(**BASE, head_dim=32)),
}


def main():
    tokenizer, out = sys.argv[1:]
    torch.manual_seed(0)
    ids = [1] + torch.randint(3, 512, (99,)).tolist()
    for name, (kind, config) in CASES.items():
        config._attn_implementation = "eager"
        model = kind(config).eval()
        for p in model.parameters():
            p.data.normal_(0, 0.15) if p.dim() > 1 else p.data.add_(torch.randn_like(p) * 0.1)
        for p in model.parameters():
            p.data = p.data.bfloat16().float()  # not model.to(): that would round the rope's frequencies too
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        folder = os.path.join(out, name)
        model.to(torch.bfloat16).save_pretrained(folder)
        shutil.copy(tokenizer, os.path.join(folder, "tokenizer.model"))
        with open(os.path.join(folder, "expected.txt"), "w") as f:
            for i, t in enumerate(ids):
                f.write(f"{t} {logp[i - 1, t].item() if i else 0:.6f}\n")


main()
