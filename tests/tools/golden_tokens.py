#!/usr/bin/env python3
"""Writes tests/golden/tokens: vocabularies, 10,000 lines and a hash of the ids that reference tokenizers give each line.

    golden_tokens.py OUT_DIR DATA_DIR SMOLLM2.gguf

DATA_DIR holds corpora/gutenberg, eval/HumanEval.jsonl.gz and tokenizers/ as PROVENANCE.md lists them. Needs gguf,
tokenizers and sentencepiece. The formats are described in tests/unit/test_token_golden.c, which reads them.
"""
import os
import pathlib
import shutil
import struct
import sys

import gguf
import sentencepiece
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(__file__))
import golden_lines  # noqa: E402

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
NAMES = ["gpt-2", "smollm", "llama-bpe", "qwen2"]


def alphabet():
    same = [*range(33, 127), *range(161, 173), *range(174, 256)]
    m = {b: chr(b) for b in same}
    for b in range(256):
        m.setdefault(b, chr(256 + len(m) - len(same)))
    return m


ALPHABET = alphabet()


def runs(b):
    """Splits bytes into (is_utf8, run)."""
    out = []
    while b:
        try:
            b.decode()
            return out + [(True, b)]
        except UnicodeDecodeError as e:
            if e.start:
                out.append((True, b[:e.start]))
            bad = b[e.start:e.end]
            if out and not out[-1][0]:
                out[-1] = (False, out[-1][1] + bad)
            else:
                out.append((False, bad))
            b = b[e.end:]
    return out


class Bpe:
    """The vocabulary of a GGUF file in the tokenizers package, with its published pre-tokeniser."""

    def __init__(self, name, path):
        f = {k: v.contents() for k, v in gguf.GGUFReader(path).fields.items() if k.startswith("tokenizer.ggml.")}
        self.text = f["tokenizer.ggml.tokens"]
        self.kind = f["tokenizer.ggml.token_type"]
        self.merges = f["tokenizer.ggml.merges"]
        self.pre = f["tokenizer.ggml.pre"]
        ids = {k: f.get("tokenizer.ggml.%s_token_id" % k, -1) for k in ("bos", "eos", "unknown", "eot")}
        self.ids = list(ids.values())
        vocab = {t: i for i, t in enumerate(self.text)}
        self.model = models.BPE(vocab=vocab, merges=[tuple(m.split(" ")) for m in self.merges],
                                ignore_merges=name == "llama-bpe")
        self.tok = tokenizers.Tokenizer(self.model)
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name in ("gpt-2", "smollm"))
        split = {"gpt-2": None, "smollm": pre_tokenizers.Digits(individual_digits=True),
                 "llama-bpe": pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                 "qwen2": pre_tokenizers.Split(Regex(QWEN2), "isolated")}[name]
        self.tok.pre_tokenizer = level if split is None else pre_tokenizers.Sequence([split, level])
        if name == "qwen2":
            self.tok.normalizer = normalizers.NFC()
        self.special = sorted((t for t, k in zip(self.text, self.kind) if k == 3), key=len, reverse=True)
        self.vocab = vocab

    def plain(self, b):
        """Text that is not UTF-8 is a word of its own, merged as bytes."""
        out = []
        for good, run in runs(b):
            if good:
                out += self.tok.encode(run.decode(), add_special_tokens=False).ids
            else:
                out += [t.id for t in self.model.tokenize("".join(ALPHABET[x] for x in run))]
        return out

    def parsed(self, b):
        out = []
        start = i = 0
        while i < len(b):
            hit = next((s for s in self.special if b.startswith(s.encode(), i)), None) if b[i:i + 1] in b"<[" else None
            if hit is None:
                i += 1
                continue
            out += self.plain(b[start:i]) + [self.vocab[hit]]
            start = i = i + len(hit.encode())
        return out + self.plain(b[start:])

    def dump(self):
        """Merges are in the order of the tokens they make, so a token and the places where it is cut say all."""
        out = header(0, len(self.text), len(self.merges), self.ids, self.pre)
        splits = [[] for _ in self.text]
        last = 0
        for m in self.merges:
            left, right = m.split(" ")
            i = self.vocab[left + right]
            assert i >= last
            last = i
            splits[i].append(len(left.encode()))
        for text, kind, cuts in zip(self.text, self.kind, splits):
            b = text.encode()
            out += struct.pack("<BH", kind, len(b)) if kind != 1 or len(b) > 199 else bytes([len(b) + 50])
            out += b
            assert len(cuts) < 256
            out.append(len(cuts))
            out += b"".join(bytes([c]) if c < 255 else struct.pack("<BH", 255, c) for c in cuts)
        return out


def header(model, n, n_merges, ids, pre):
    return bytearray(struct.pack("<8sBxxxII4i16s", b"wvocab1\n", model, n, n_merges, *ids, pre.encode()))


class Spm:
    def __init__(self, path):
        self.raw = pathlib.Path(path).read_bytes()
        self.first = sentencepiece.SentencePieceProcessor(model_proto=self.raw)
        # A message appended to another is merged into it: normalizer_spec.add_dummy_prefix = false.
        self.later = sentencepiece.SentencePieceProcessor(model_proto=self.raw + b"\x1a\x02\x18\x00")
        self.byte = [self.first.piece_to_id("<0x%02X>" % b) for b in range(256)]

    def plain(self, b):
        out = []
        for k, (good, run) in enumerate(runs(b)):
            if k == 0 and not good:
                out += self.later.encode(" ")
            if good:
                out += (self.later if k else self.first).encode(run.decode())
            else:
                out += [self.byte[x] for x in run]
        return out


def fnv(ids):
    h = 0xCBF29CE484222325
    for i in ids:
        for x in struct.pack("<i", i):
            h = (h ^ x) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return struct.pack("<Q", h)


def main():
    out, data, smollm = map(pathlib.Path, sys.argv[1:])
    lines = golden_lines.make(data)
    (out / "lines.bin").write_bytes(b"".join(struct.pack("<H", len(b)) + b for b in lines))
    tok = data / "tokenizers"
    for name in NAMES:
        t = Bpe(name, smollm if name == "smollm" else tok / ("ggml-vocab-%s.gguf" % name))
        (out / (name + ".vocab")).write_bytes(t.dump())
        (out / (name + ".ids")).write_bytes(b"".join(fnv(t.plain(b)) + fnv(t.parsed(b)) for b in lines))
    t = Spm(tok / "llama2-tokenizer.model")
    (out / "llama2.model").write_bytes(t.raw)
    (out / "llama2.ids").write_bytes(b"".join(fnv(t.plain(b)) * 2 for b in lines))
    shutil.copyfile(tok / "ggml-vocab-gpt-2.gguf.inp", out / "cases.inp")
    for name in [n for n in NAMES if n != "smollm"] + ["llama-spm"]:
        shutil.copyfile(tok / ("ggml-vocab-%s.gguf.out" % name), out / (name.replace("llama-spm", "llama2") + ".out"))


main()
