#!/usr/bin/env python3
"""Load of a server on loopback: STREAMS clients, each sending REQUESTS requests one after the other.

usage: load.py [--streams N] [--requests N] [--prompt N] [--tokens N] [--kv JSON] -- COMMAND...

COMMAND is a `wring serve` that listens on a port of its choice ("--port 0" is added here). Every prompt is different text of
--prompt bytes, and every answer has --tokens tokens (ignore_eos), streamed; --kv is the request's compression.kv, as
'{"policy": "window", "budget": 512}'. Needs nothing but Python's standard library.
Prints one JSON object: tokens a second of all streams together, counted by the server's own usage figures, from
the first request to the last answer; time to the first token and between tokens, medians and 99th percentiles; the most
sequences that ran at once, and swaps.
"""
import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import threading
import time
import urllib.request


def start(command, log):
    """Starts the server and waits until it listens; returns the process, host and port."""
    p = subprocess.Popen(command + ["--port", "0", "--log-format", "logfmt"], stderr=subprocess.PIPE, text=True)
    for line in p.stderr:
        log.append(line)
        m = re.search(r"event=listening.*?url=http://([^:/]+):(\d+)", line)
        if m:
            # Somebody must read the log, or the server would block on a full pipe.
            threading.Thread(target=lambda: log.extend(p.stderr), daemon=True).start()
            return p, m.group(1), int(m.group(2))
    p.wait()
    sys.exit("load.py: the server did not start:\n" + "".join(log[-8:]))


class Answer:
    def __init__(self):
        self.start, self.times, self.tokens, self.prompt, self.error = time.perf_counter(), [], 0, 0, None


class Watch(threading.Thread):
    """Reads the server's own numbers while it works."""

    def __init__(self, host, port):
        super().__init__(daemon=True)
        self.url, self.running, self.swaps, self.over = f"http://{host}:{port}/metrics", 0, 0, threading.Event()

    def value(self, text, name):
        return int(float(re.search(rf"^wring_{name}\{{.*\}} (\S+)$", text, re.M).group(1)))

    def run(self):
        while not self.over.wait(0.1):
            try:
                text = urllib.request.urlopen(self.url, timeout=5).read().decode()
            except OSError:
                continue
            self.running = max(self.running, self.value(text, "requests_running"))
            self.swaps = self.value(text, "kv_swaps_total")


async def ask(host, port, prompt, tokens, kv=None):
    """One streamed completion over a connection of its own."""
    a = Answer()
    body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}}
    if kv is not None:
        body["compression"] = {"kv": kv}
    body = json.dumps(body).encode()
    try:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n"
                     b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (host.encode(), len(body), body))
        status = await reader.readline()
        if b" 200 " not in status:
            a.error = status.decode(errors="replace").strip()
        async for line in reader:
            if line.startswith(b"data: {"):
                a.times.append(time.perf_counter())
                usage = re.search(rb'"usage":\s*(\{[^}]*)', line)
                if usage:
                    a.tokens, a.prompt = (int(re.search(rb'"%s":\s*(\d+)' % k, usage.group(1)).group(1))
                                          for k in (b"completion_tokens", b"prompt_tokens"))
        writer.close()
    except OSError as e:
        a.error = str(e)
    if a.error is None and a.tokens != tokens:
        a.error = f"{a.tokens} tokens instead of {tokens}"
    return a


async def client(i, o, host, port):
    rng, answers = random.Random(i), []
    for _ in range(o.requests):
        prompt = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=o.prompt))
        answers.append(await ask(host, port, prompt, o.tokens, o.kv))
    return answers


async def run(o, host, port):
    await ask(host, port, "warm", o.tokens)
    t0 = time.perf_counter()
    parts = await asyncio.gather(*(client(i, o, host, port) for i in range(o.streams)))
    return [a for part in parts for a in part], time.perf_counter() - t0


def percentile(values, p):
    values = sorted(values)
    return round(1e3 * values[min(len(values) - 1, int(p * len(values)))], 2) if values else None


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--streams", type=int, default=64)
    p.add_argument("--requests", type=int, default=3)
    p.add_argument("--prompt", type=int, default=128)
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--kv", type=json.loads)
    p.add_argument("command", nargs="+")
    o = p.parse_args()
    log = []
    server, host, port = start(o.command, log)
    watch = Watch(host, port)
    watch.start()
    try:
        answers, seconds = asyncio.run(run(o, host, port))
    finally:
        watch.over.set()
        server.terminate()
        server.wait()
    good = [a for a in answers if a.error is None]
    first = [a.times[0] - a.start for a in good]
    # The last event holds the usage only.
    between = [t - s for a in good for s, t in zip(a.times, a.times[1:-1])]
    print(json.dumps({
        "test": "load", "streams": o.streams, "requests": len(answers), "failed": len(answers) - len(good),
        "at_once": watch.running, "swaps": watch.swaps,
        "prompt_tokens": sum(a.prompt for a in good), "tokens": sum(a.tokens for a in good),
        "tok_s": round(sum(a.tokens for a in good) / seconds, 1),
        "ttft_ms": percentile(first, 0.5), "ttft_p99_ms": percentile(first, 0.99),
        "itl_ms": percentile(between, 0.5), "itl_p99_ms": percentile(between, 0.99)}))
    for a in answers:
        if a.error is not None:
            sys.exit(f"load.py: {len(answers) - len(good)} requests failed; the first: {a.error}\n" + "".join(log[-4:]))


main()
