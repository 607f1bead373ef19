#!/usr/bin/env python3
"""A model's shape with random weights of another of llama.cpp's types: to time a peer without pressing a model for it.

usage: random_gguf.py MODEL.gguf OUT.gguf TYPE      TYPE: one of the table below

The matrices of the layers become blocks of random bits with small scales, which every type has a meaning for; all else, embedding
and head too, stays as it is in MODEL. What such a model says is worth nothing. Blocks are those of llama.cpp's ggml-common.h.
"""
import os
import struct
import sys

# type: its number, numbers and bytes a block, where the block's f16 scales are
TYPES = {"q4_0": (2, 32, 18, [0]), "q2_k": (10, 256, 84, [80, 82]), "q3_k": (11, 256, 110, [108]), "q4_k": (12, 256, 144, [0, 2]),
         "iq2_xxs": (16, 256, 66, [0]), "iq3_xxs": (18, 256, 98, [0])}
SCALE = b"\x00\x10"  # 2^-11 as f16
FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a GGUF value by its type
STRING, ARRAY = 8, 9


class Reader:
    def __init__(self, path):
        with open(path, "rb") as f:
            self.data = f.read()
        if self.data[:4] != b"GGUF":
            sys.exit(f"{path} is no GGUF file")
        self.at = 8

    def number(self, form):
        (v,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return v

    def string(self):
        n = self.number("Q")
        self.at += n
        return self.data[self.at - n:self.at]

    def skip(self, kind):
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            kind, n = self.number("I"), self.number("Q")
            for _ in range(n):
                self.skip(kind)
        else:
            self.at += FIXED[kind]


def blocks(kind, numbers, noise):
    _, width, size, scales = TYPES[kind]
    n = numbers // width
    out = bytearray((noise * (n * size // len(noise) + 1))[:n * size])
    for at in scales:
        for i, byte in enumerate(SCALE):
            out[at + i::size] = bytes([byte]) * n
    return bytes(out)


def main():
    if len(sys.argv) != 4 or sys.argv[3] not in TYPES:
        sys.exit(__doc__)
    source, target, kind = sys.argv[1:]
    r, align, noise = Reader(source), 32, os.urandom(1 << 20)
    n_tensors, n_keys = r.number("Q"), r.number("Q")
    for _ in range(n_keys):
        key, value = r.string(), r.number("I")
        if key == b"general.alignment":
            align = struct.unpack_from("<I", r.data, r.at)[0]
        r.skip(value)
    head = r.data[:r.at]
    tensors = [(r.string(), [r.number("Q") for _ in range(r.number("I"))], r.number("I"), r.number("Q"))
               for _ in range(n_tensors)]
    base = -(-r.at // align) * align
    ends = sorted(t[3] for t in tensors) + [len(r.data) - base]
    table, body = b"", []
    place = 0
    for name, dims, number, offset in tensors:
        data = r.data[base + offset:base + min(e for e in ends if e > offset)]
        if len(dims) == 2 and name.startswith(b"blk."):
            number, data = TYPES[kind][0], blocks(kind, dims[0] * dims[1], noise)
        data += bytes(-len(data) % align)
        table += struct.pack(f"<Q{len(name)}sI{len(dims)}QIQ", len(name), name, len(dims), *dims, number, place)
        place += len(data)
        body.append(data)
    with open(target, "wb") as f:
        f.write(head + table + bytes(-(len(head) + len(table)) % align))
        f.writelines(body)


main()
