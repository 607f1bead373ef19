#!/usr/bin/env python3
"""Random blocks of every tensor type of GGUF and what the package `gguf` makes of them.

    pip install gguf numpy; tests/tools/golden_dtypes.py tests/golden/dtypes

writes TYPE.bin: u32 number of values, the blocks, the values as little-endian f32. Bytes are random; scales (f16) are
finite; the IQ2_XXS file holds every row of the table.
"""
import os
import sys

import gguf
import numpy as np

TYPES = "F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ2_XXS".split()
# where in a block the f16 scales lie
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
    "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ2_XXS": [0],
}


def blocks(name, rng):
    kind = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    if elements == 1:
        return np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    n = 4096 // elements
    b = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for at in HALVES[name]:
        half = rng.normal(0, 0.05, n).astype(np.float16)
        half[0] = np.float16(3e-7)  # a subnormal one
        b[:, at : at + 2] = half.view(np.uint8).reshape(n, 2)
    if name == "IQ2_XXS":
        rows = b[:, 2:].reshape(n, 8, 8)[:, :, :4]
        rows[:] = rng.permutation(np.tile(np.arange(256, dtype=np.uint8), 2)).reshape(n, 8, 4)
    return b


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    for i, name in enumerate(TYPES):
        kind = gguf.GGMLQuantizationType[name]
        b = blocks(name, np.random.default_rng(i))
        values = gguf.dequantize(b, kind).astype("<f4").reshape(-1)
        if name in ("F16", "BF16"):  # all 65536 are compared in C with the definition; keep a few
            b, values = b[::97], values[::97]
        with open(os.path.join(folder, name + ".bin"), "wb") as f:
            f.write(np.uint32(values.size).tobytes() + b.tobytes() + values.tobytes())
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as f:
        f.write("Random blocks of GGUF's tensor types and their values by `gguf` "
                f"{gguf_version()}, numpy {np.__version__}:\n`tests/tools/golden_dtypes.py tests/golden/dtypes`.\n"
                "Form: u32 number of values, blocks, f32 values, little-endian.\n")


def gguf_version():
    from importlib.metadata import version

    return version("gguf")


if __name__ == "__main__":
    main()
