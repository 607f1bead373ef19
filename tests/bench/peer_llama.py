#!/usr/bin/env python3
"""The peer's side of compare.py: times llama.cpp through the low-level API of the PyPI package llama-cpp-python.

usage: peer_llama.py MODEL.gguf THREADS TEST...      TEST: prefill:N, or decode:BATCH:DEPTH
Prints one JSON object a test, with the same meaning as `wring bench --json`.
"""
import ctypes
import json
import statistics
import sys
import time

import llama_cpp as ll

STEPS, REPEAT = 24, 3


class Peer:
    def __init__(self, path, threads):
        ll.llama_backend_init()
        self.silent = ll.llama_log_callback(lambda level, text, user: None)
        ll.llama_log_set(self.silent, ctypes.c_void_p(0))
        self.model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        assert self.model, f"cannot load {path}"
        self.vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.batch, self.threads, self.ctx = ll.llama_batch_init(512, 0, 1), threads, None

    def open(self, tokens, seqs):
        """A context of its own for each test: llama.cpp divides a context evenly among its sequences."""
        if self.ctx:
            ll.llama_free(self.ctx)
        p = ll.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = (tokens + 255) // 256 * 256 * seqs, 512, 512, seqs
        p.n_threads = p.n_threads_batch = self.threads
        self.ctx = ll.llama_init_from_model(self.model, p)
        assert self.ctx, "cannot make a context"

    def step(self, rows):
        """rows: (position, sequence, wants logits)"""
        b = self.batch
        b.n_tokens = len(rows)
        for i, (pos, seq, out) in enumerate(rows):
            b.token[i] = (pos * 7919 + seq * 31 + 17) % self.vocab
            b.pos[i], b.n_seq_id[i], b.seq_id[i][0], b.logits[i] = pos, 1, seq, out
        rc = ll.llama_decode(self.ctx, b)
        assert rc == 0, f"llama_decode failed with {rc}"
        ll.llama_synchronize(self.ctx)

    def clear(self):
        ll.llama_memory_clear(ll.llama_get_memory(self.ctx), True)

    def fill(self, seq, n):
        for at in range(0, n, 512):
            m = min(512, n - at)
            self.step([(at + i, seq, at + i == n - 1) for i in range(m)])

    def prefill(self, n):
        self.open(n, 1)
        times = []
        for i in range(REPEAT + 1):
            self.clear()
            t0 = time.perf_counter()
            self.fill(0, n)
            times.append(time.perf_counter() - t0)
        return n / statistics.median(times[1:])

    def decode(self, batch, depth):
        self.open(depth + STEPS * (REPEAT + 1) + 1, batch)
        self.clear()
        for s in range(batch):
            if depth:
                self.fill(s, depth)
        pos, times = depth, []
        for r in range(REPEAT + 1):
            t0 = time.perf_counter()
            for _ in range(STEPS):
                self.step([(pos, s, True) for s in range(batch)])
                pos += 1
            times.append((time.perf_counter() - t0) / STEPS)
        return batch / statistics.median(times[1:])


def main():
    path, threads, tests = sys.argv[1], int(sys.argv[2]), [t.split(":") for t in sys.argv[3:]]
    peer = Peer(path, threads)
    for t in tests:
        if t[0] == "prefill":
            row = {"test": f"prefill {t[1]}", "batch": 1, "depth": 0, "tok_s": peer.prefill(int(t[1]))}
        else:
            row = {"test": "decode", "batch": int(t[1]), "depth": int(t[2]), "tok_s": peer.decode(int(t[1]), int(t[2]))}
        print(json.dumps(row), flush=True)


main()
