#!/usr/bin/env python3
"""Makes tests/golden/aqlm: what the PyPI packages aqlm 1.1.7 (with torch 2.13.0 and transformers 5.24.0) make of AQLM weights.

usage: golden_aqlm.py TOKENIZER.model OUT      (a sentencepiece model of 512 tokens, as `wring import llama2c` writes)

rows       for each form of tests/unit/test_aqlm.c, in its order: 24 x 64 weights as f16, by aqlm's dequantiser, of codes,
           codebooks and scales that both programs make by one formula.
llama/     a tiny model as transformers writes it (two layers, 2x6 g8, random codes), and expected.txt: for each of 100 tokens
           its id and, from the second on, its log-probability after the ones before it, in float32 with the f16 weights of
           aqlm's dequantiser. (aqlm itself adds up its codebooks in the type of the model, so a float32 model would have
           other weights.)
"""
import json
import os
import shutil
import sys

import numpy as np
import torch
from aqlm.utils import _dequantize_weight, pack_int_data, unpack_int_data
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

ROWS, COLS = 24, 64
FORMS = [(1, 16, 8), (2, 8, 8), (1, 16, 16), (1, 8, 8), (8, 8, 32), (3, 5, 16), (2, 12, 8)]
BOOKS, BITS, GROUP = 2, 6, 8


def hashed(first, n):
    i = (np.arange(first, first + n, dtype=np.uint64) * 0x9e3779b1 & 0xffffffff).astype(np.uint32)
    i ^= i >> 15
    i = (i.astype(np.uint64) * 0x85ebca6b & 0xffffffff).astype(np.uint32)
    return i ^ i >> 13


def halves(first, n, middle, width):
    v = (hashed(first, n) & 0xffff).astype(np.float32) - np.float32(32768)
    return torch.from_numpy((np.float32(middle) + v * (np.float32(width) / np.float32(32768))).astype(np.float16))


def rows_of(books, bits, group):
    n = ROWS * COLS // group * books
    size = 1 if bits <= 8 else 2
    raw = (hashed(0, n * size) & 0xff).astype(np.uint8).view(np.int8 if size == 1 else np.int16)
    codes = unpack_int_data(torch.from_numpy(raw.copy()), bits).reshape(ROWS, COLS // group, books)
    book = halves(1 << 26, books * 2**bits * group, 0, 0.05).reshape(books, 2**bits, 1, group)
    scales = halves(1 << 28, ROWS, 1, 0.5).reshape(ROWS, 1, 1, 1)
    return _dequantize_weight(codes, book, scales).numpy().tobytes()


def press(rows, cols):
    codes = torch.randint(0, 2**BITS, (rows, cols // GROUP, BOOKS))
    book = (torch.randn(BOOKS, 2**BITS, 1, GROUP) * 0.1).half()
    scales = (torch.rand(rows, 1, 1, 1) + 0.5).half()
    return codes, book, scales


def write_model(tokenizer, folder):
    ids = [1] + torch.randint(3, 512, (99,)).tolist()
    config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         vocab_size=512, max_position_embeddings=1024, tie_word_embeddings=True)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval()
    tensors = {}
    for name, p in model.named_parameters():
        if "_proj" not in name:
            p.data = (torch.randn_like(p) * 0.15 if p.dim() > 1 else 1 + torch.randn_like(p) * 0.1).half().float()
            tensors[name] = p.data.half()
            continue
        codes, book, scales = press(*p.shape)
        p.data = _dequantize_weight(codes, book, scales).float()
        module = name.removesuffix(".weight")
        tensors[module + ".codes"] = pack_int_data(codes, BITS)
        tensors[module + ".codebooks"] = book
        tensors[module + ".scales"] = scales
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    os.makedirs(folder, exist_ok=True)
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    said = config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "float16", "quantization_config": {
        "quant_method": "aqlm", "in_group_size": GROUP, "out_group_size": 1, "num_codebooks": BOOKS, "nbits_per_codebook": BITS,
        "linear_weights_not_to_quantize": [n for n in tensors if n.endswith(".weight")] + ["lm_head.weight"]}}
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(said, f, indent=1, sort_keys=True)
    shutil.copy(tokenizer, os.path.join(folder, "tokenizer.model"))
    with open(os.path.join(folder, "expected.txt"), "w") as f:
        for i, t in enumerate(ids):
            f.write(f"{t} {logp[i - 1, t].item() if i else 0:.6f}\n")


def main():
    tokenizer, out = sys.argv[1:]
    torch.manual_seed(0)
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "rows"), "wb") as f:
        for form in FORMS:
            f.write(rows_of(*form))
    write_model(tokenizer, os.path.join(out, "llama"))


main()
