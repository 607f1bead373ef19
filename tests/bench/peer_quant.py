#!/usr/bin/env python3
"""A peer's side of quant.sh: presses a llama by llama.cpp, through the C API of its library.

usage: peer_quant.py LIBRARY MODEL OUT [TYPE...]
LIBRARY: libllama.so, as PyPI's llama-cpp-python builds it or npm's @node-llama-cpp/linux-x64 ships it. MODEL: a GGUF file, or a
folder with a llama of one f32 safetensors file and a sentencepiece tokenizer. TYPE: a name of FTYPES below, or with an importance
matrix NAME+imatrix: then OUT/importance.jsonl must be there (importance.c), and the library must be one of 2026, whose API takes
that as an array. Writes OUT/F32.gguf, the model, OUT/TYPE.gguf, pressed, and OUT/TYPE-f32.gguf, the same numbers as llama.cpp
unpacks them, for a judge that does not know the type. Embedding and head are Q8_0 in all of them. Prints one JSON object a type:
bits a weight of the layers' matrices and of all tensors, the tensors' bytes, and a name that tells the types matrices got where
rows do not fit the one asked for.

Needs numpy, gguf and sentencepiece (PyPI).
"""
import collections
import ctypes
import glob
import json
import os
import sys

import gguf
import numpy as np
import sentencepiece

# include/llama.h: enum llama_ftype
FTYPES = {"F32": 0, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12,
          "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "Q2_K_S": 21, "IQ3_S": 26,
          "IQ3_M": 27, "IQ4_NL": 25, "IQ4_XS": 30}
Q8_0 = 8  # include/ggml.h: enum ggml_type


class Importance(ctypes.Structure):
    """llama_model_imatrix_data; an array of them ends with a name of NULL."""
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class Params(ctypes.Structure):
    """llama_model_quantize_params: members that are set have names of their own; the rest stays as the library fills it."""
    _fields_ = [("nthread", ctypes.c_int32), ("ftype", ctypes.c_int32), ("output_type", ctypes.c_int32),
                ("embedding_type", ctypes.c_int32), ("allow_requantize", ctypes.c_bool), ("flags", ctypes.c_char * 7),
                ("imatrix", ctypes.POINTER(Importance)), ("rest", ctypes.c_char * 96)]


def open_library(path):
    folder = os.path.dirname(os.path.realpath(path))
    lib = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    for name in glob.glob(folder + "/libggml.*so*") + glob.glob(folder + "/libggml-base.so*"):
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    lib.llama_model_quantize_default_params.restype = Params
    lib.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Params)]
    lib.llama_model_quantize.restype = ctypes.c_uint32
    lib.llama_backend_init()
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, user: None)
    lib.llama_log_set(silent, None)
    lib.silent = silent
    return lib


def read_importance(path):
    """{name: mean square of every input}"""
    with open(path) as f:
        lines = [json.loads(line) for line in f]
    return {t["name"]: np.array(t["mean"], np.float32) for t in lines}


def importance_array(means):
    a = (Importance * (len(means) + 1))()
    for i, (name, x) in enumerate(means.items()):
        a[i] = Importance(name.encode(), x.ctypes.data, x.size)
    return a


def press(lib, src, dst, ftype, embedding, means=None):
    p = lib.llama_model_quantize_default_params()
    p.nthread, p.ftype, p.allow_requantize = 2, ftype, True
    p.output_type = p.embedding_type = embedding
    if means:
        p.imatrix = importance_array(means)
    rc = lib.llama_model_quantize(src.encode(), dst.encode(), ctypes.byref(p))
    if rc != 0:
        sys.exit(f"llama_model_quantize to {dst} failed with {rc}")


def read_safetensors(path):
    with open(path, "rb") as f:
        n = int.from_bytes(f.read(8), "little")
        head = json.loads(f.read(n))
        data = f.read()
    for name, t in head.items():
        if name != "__metadata__":
            a, b = t["data_offsets"]
            assert t["dtype"] == "F32", f"{name} is {t['dtype']}, not F32"
            yield name, np.frombuffer(data[a:b], np.float32).reshape(t["shape"])


NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def gguf_name(name):
    if name.startswith("model.layers."):
        layer, rest = name[len("model.layers."):].split(".", 1)
        return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight"}[name]


def pairs(x, heads):
    """Rows of q or k from halves to the interleaved pairs of GGUF's llama."""
    return x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)


def add_tokenizer(w, path):
    sp = sentencepiece.SentencePieceProcessor(model_file=path)
    n = sp.get_piece_size()
    kind = [gguf.TokenType.UNKNOWN if sp.is_unknown(i) else gguf.TokenType.CONTROL if sp.is_control(i) else
            gguf.TokenType.BYTE if sp.is_byte(i) else gguf.TokenType.NORMAL for i in range(n)]
    w.add_tokenizer_model("llama")
    w.add_token_list([sp.id_to_piece(i) for i in range(n)])
    w.add_token_scores([sp.get_score(i) for i in range(n)])
    w.add_token_types(kind)
    w.add_bos_token_id(sp.bos_id())
    w.add_eos_token_id(sp.eos_id())
    w.add_unk_token_id(sp.unk_id())


def write_f32(folder, out):
    c = json.load(open(folder + "/config.json"))
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    w = gguf.GGUFWriter(out, "llama")
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_rope_dimension_count(c["hidden_size"] // heads)
    w.add_rope_freq_base(c.get("rope_theta", 10000.0))
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(c["vocab_size"])
    add_tokenizer(w, folder + "/tokenizer.model")
    for name, x in read_safetensors(folder + "/model.safetensors"):
        if "q_proj" in name or "k_proj" in name:
            x = pairs(x, heads if "q_proj" in name else kv)
        w.add_tensor(gguf_name(name), np.ascontiguousarray(x))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def write_teacher(lib, model, out):
    if os.path.isdir(model):
        write_f32(model, out)
    else:
        press(lib, model, out, FTYPES["F32"], 0)


def describe(name, path):
    bits, weights = collections.Counter(), collections.Counter()
    types = collections.Counter()
    for t in gguf.GGUFReader(path).tensors:
        layers = t.name.startswith("blk.") and len(t.shape) == 2
        for part in ["all"] + ["layers"] * layers:
            bits[part] += 8 * int(t.n_bytes)
            weights[part] += int(t.n_elements)
        if layers:
            types[t.tensor_type.name] += 1
    if list(types) != [name.split("+")[0]]:
        name += ": " + " ".join(f"{k} x{n}" for k, n in types.most_common())
    return {"name": name, "layer_bits": round(bits["layers"] / weights["layers"], 3),
            "bits": round(bits["all"] / weights["all"], 3), "bytes": bits["all"] // 8}


def main():
    library, model, out, types = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
    lib = open_library(library)
    f32 = f"{out}/F32.gguf"
    if not os.path.exists(f32):
        write_teacher(lib, model, f32)
    for t in types:
        pressed, expanded = f"{out}/{t}.gguf", f"{out}/{t}-f32.gguf"
        means = read_importance(f"{out}/importance.jsonl") if t.endswith("+imatrix") else None
        press(lib, f32, pressed, FTYPES[t.removesuffix("+imatrix")], Q8_0, means)
        press(lib, pressed, expanded, FTYPES["F32"], 0)
        print(json.dumps(describe(t, pressed)), flush=True)


if __name__ == "__main__":
    main()
