#!/usr/bin/env python3
"""Writes tests/golden/token_json: small tokenizers as the package `tokenizers` saves them, and the ids it gives.

    golden_token_json.py OUT_DIR LINES

LINES is tests/golden/tokens/lines.bin, no line of which has U+2581. NAME/ has tokenizer.json and the files beside it;
NAME.ids has a u64 a line, little-endian: FNV-1a over the int32 ids, special tokens recognised and added, or 0 where the
line is not UTF-8.
"""
import json
import pathlib
import struct
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
SPACE = "\u2581"


def read_lines(path):
    b = pathlib.Path(path).read_bytes()
    at = 0
    while at < len(b):
        n = struct.unpack_from("<H", b, at)[0]
        try:
            yield b[at + 2:at + 2 + n].decode()
        except UnicodeDecodeError:
            yield None
        at += 2 + n


def fnv(ids):
    h = 0xCBF29CE484222325
    for byte in struct.pack("<%di" % len(ids), *ids):
        h = (h ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return h


def bos_first(name, at):
    return processors.TemplateProcessing(single=name + " $A", pair="%s $A %s:1 $B:1" % (name, name),
                                         special_tokens=[(name, at)])


def byte_level(lines):
    """Like Llama 3's, with an added token that is not special."""
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False))
    t.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>"])
    t.add_tokens([AddedToken("<tool_call>", normalized=False)])
    t.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False),
         bos_first("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))])
    config = {"bos_token": {"__type": "AddedToken", "content": "<|begin_of_text|>"}, "eos_token": "<|end_of_text|>",
              "tokenizer_class": "PreTrainedTokenizerFast"}
    ends = {"eos_token_id": [t.token_to_id(s) for s in ("<|end_of_text|>", "<|eot_id|>")]}
    return t, config, ends


def sentencepiece_like(lines):
    """Like Mistral's, but trained here: its merges are not all pairs of pieces that make a piece."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=700, limit_alphabet=120, show_progress=False))
    learnt = json.loads(t.to_str())["model"]
    names = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256)]
    names += sorted(learnt["vocab"], key=learnt["vocab"].get)
    t = Tokenizer(models.BPE({s: i for i, s in enumerate(names)}, [tuple(m) for m in learnt["merges"]],
                             unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    t.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    t.add_special_tokens(["<unk>", "<s>", "</s>"])
    t.post_processor = bos_first("<s>", 1)
    return t, {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, None


def write(folder, name, value):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def main():
    out = pathlib.Path(sys.argv[1])
    lines = list(read_lines(sys.argv[2]))
    for name, make in (("bytes", byte_level), ("spm", sentencepiece_like)):
        t, config, ends = make([s for s in lines if s is not None])
        write(out / name, "tokenizer.json", json.loads(t.to_str()))
        write(out / name, "tokenizer_config.json", config)
        if ends is not None:
            write(out / name, "generation_config.json", ends)
        hashes = [0 if s is None else fnv(t.encode(s).ids) for s in lines]
        (out / (name + ".ids")).write_bytes(struct.pack("<%dQ" % len(hashes), *hashes))


main()
