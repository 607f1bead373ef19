#!/usr/bin/env python3
"""Speed of wring next to llama.cpp: same machine, same run, interleaved, medians.

usage: compare.py [--rounds N] [--threads N] [--peer-python PYTHON] [--tests LIST] MODEL.gguf...

The peer is the PyPI package llama-cpp-python (pip install llama-cpp-python==0.3.36; it builds from source), looked for
in the Python of --peer-python. Both sides run the same tests in turn, each in a process of its own; a row is the median
over the rounds, and the ratio is the median of the rounds' ratios.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
WRING = os.path.join(HERE, "..", "..", "build", "wring")
TESTS = "prefill:512 prefill:8192 decode:1:0 decode:1:4096 decode:8:0"


def rows(cmd):
    out = subprocess.run(cmd, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    found = {}
    for line in out.splitlines():
        r = json.loads(line)
        found[r["test"], r["batch"], r["depth"]] = r
    return found


def wring(model, threads, test):
    kind, *n = test.split(":")
    if kind == "prefill":
        args = ["--prompts", n[0], "--batches", "", "--depths", ""]
    else:
        args = ["--prompts", "", "--batches", n[0], "--depths", n[1]]
    return rows([WRING, "bench", model, "--json", "--threads", str(threads), "--log-level", "error"] + args)


def llama(python, model, threads, test):
    return rows([python, os.path.join(HERE, "peer_llama.py"), model, str(threads), test])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--peer-python", default=sys.executable)
    p.add_argument("--tests", default=TESTS)
    p.add_argument("model", nargs="+")
    a = p.parse_args()
    for model in a.model:
        print(f"\n{os.path.basename(model)}, {a.threads} threads, medians of {a.rounds} interleaved rounds")
        print(f"{'test':<14}{'batch':>6}{'depth':>7}{'llama.cpp':>11}{'wring':>10}{'ratio':>8}{'of read':>9}{'of peak':>9}")
        for test in a.tests.split():
            pairs = []
            for _ in range(a.rounds):
                theirs, ours = llama(a.peer_python, model, a.threads, test), wring(model, a.threads, test)
                pairs += [(theirs[k], ours[k]) for k in ours]
            mid = lambda v: statistics.median(v)
            o = pairs[0][1]
            read = [w["bw_frac"] for _, w in pairs if w["bw_frac"] is not None]
            print(f"{o['test']:<14}{o['batch']:>6}{o['depth']:>7}{mid([x['tok_s'] for x, _ in pairs]):>11.1f}"
                  f"{mid([w['tok_s'] for _, w in pairs]):>10.1f}{mid([w['tok_s'] / x['tok_s'] for x, w in pairs]):>8.2f}"
                  f"{mid(read) if read else float('nan'):>9.2f}{mid([w['peak_frac'] for _, w in pairs]):>9.2f}", flush=True)


main()
