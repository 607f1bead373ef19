#!/usr/bin/env python3
"""A peer's side of quant.sh: presses a llama by HQQ, on the CPU.

usage: peer_hqq.py OUT TYPE...
TYPE: HQQ2, HQQ3, HQQ4 and so on, bits a weight. OUT/F32.gguf is the model, as peer_quant.py leaves it. Matrices of the layers are
pressed in groups of 64 along their rows (axis 1, as transformers does it; a row that is no multiple of 64 shares a group with the
next), with a scale and a zero of 16 bits each; embedding and head are Q8_0. Writes OUT/TYPE-f32.gguf, the numbers that come of
it, for a judge that does not know the form. Prints one JSON object a type: bits a weight of the layers' matrices and of all
tensors, and the tensors' bytes. Bytes are those of HQQ's own packing, which puts ten numbers of 3 bits into 32.

Needs hqq, torch, numpy and gguf (PyPI).
"""
import collections
import json
import shutil
import sys

import gguf
import torch
from gguf.quants import dequantize, quantize
from hqq.core.quantize import Quantizer

GROUP, Q8_0 = 64, gguf.GGMLQuantizationType.Q8_0


def press_matrix(x, bits):
    """What x becomes, and in how many bytes."""
    codes, meta = Quantizer.quantize(torch.tensor(x), nbits=bits, group_size=GROUP, axis=1, device="cpu")
    meta["scale"], meta["zero"] = meta["scale"].half(), meta["zero"].half()
    n_bytes = codes.nbytes + meta["scale"].nbytes + meta["zero"].nbytes
    meta["compute_dtype"] = torch.float32  # what it unpacks to: only scales and zeros are rounded
    return Quantizer.dequantize(codes, meta).numpy(), n_bytes


def press_tensor(t, bits):
    if t.name.startswith("blk.") and len(t.shape) == 2:
        return press_matrix(t.data, bits)
    if len(t.shape) == 2:
        packed = quantize(t.data, Q8_0)
        return dequantize(packed, Q8_0), packed.nbytes
    return t.data, t.data.nbytes


def press(path, bits):
    """Presses the tensors of a file of f32 where they are."""
    n_bytes, weights = collections.Counter(), collections.Counter()
    for t in gguf.GGUFReader(path, "r+").tensors:
        x, n = press_tensor(t, bits)
        t.data[:] = x
        for part in ["all"] + ["layers"] * (t.name.startswith("blk.") and len(t.shape) == 2):
            n_bytes[part] += n
            weights[part] += t.data.size
    return {"layer_bits": round(8 * n_bytes["layers"] / weights["layers"], 3),
            "bits": round(8 * n_bytes["all"] / weights["all"], 3), "bytes": n_bytes["all"]}


def main():
    out, types = sys.argv[1], sys.argv[2:]
    for t in types:
        path = f"{out}/{t}-f32.gguf"
        shutil.copy(f"{out}/F32.gguf", path)
        print(json.dumps({"name": t} | press(path, int(t.removeprefix("HQQ")))), flush=True)


if __name__ == "__main__":
    main()
