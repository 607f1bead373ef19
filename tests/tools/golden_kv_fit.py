#!/usr/bin/env python3
"""Heads of random and of clustered tokens, and what the fit of kvcache/fit.h gives for them in double precision.

    pip install numpy; tests/tools/golden_kv_fit.py tests/golden/kv_fit

The formulas are those of the PyTorch program that measured the method (its fitB2 and fitV2), in float64 and with a plain
solve instead of Cholesky. A file is little-endian:
    int32 rows, n, slots, dim, n_tokens; float32 lambda;
    float32 q[rows][dim], k[n][dim], v[n][dim], beta[n], o[rows][dim], lse[rows], weight[rows];
    int32 keep[slots], exact[slots];
    float32 beta_votes[slots], v_fit[slots][dim], v_values[slots][dim]   (modes VOTES and FIT, FIT, VALUES)
Logits are q.k / sqrt(dim) + beta; o and lse are those of full attention.
"""
import os
import sys

import numpy as np

ROUNDS = 10
CASES = {  # rows, n, slots, dim, share exact, lambda, clusters, pressed before
    "random": (96, 160, 40, 16, 0.4, 0.02, 0, False),
    "clustered": (96, 160, 40, 16, 0.4, 0.02, 12, False),
    "few_rows": (20, 160, 48, 16, 0.4, 0.02, 0, False),
    "few_rows_clustered": (20, 160, 48, 16, 0.0, 0.002, 6, False),
    "sharp": (48, 160, 10, 16, 0.3, 0.02, 16, False),
    "small_lambda": (96, 160, 40, 16, 0.0, 0.0005, 12, False),
    "pressed_before": (60, 120, 36, 16, 0.5, 0.02, 12, True),
}


def f32(x):
    return np.asarray(x, dtype="<f4")


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def head(rng, rows, n, slots, dim, exact, clusters, before):
    if clusters:
        centre, value = rng.normal(0, 1, (clusters, dim)), rng.normal(0, 1, (clusters, dim))
        of = rng.integers(0, clusters, n)
        k = centre[of] + rng.normal(0, 0.1, (n, dim))
        v = value[of] + rng.normal(0, 0.3, (n, dim))
        q = (8 if slots < clusters else 2.5) * centre[rng.integers(0, clusters, rows)] + rng.normal(0, 1, (rows, dim))
    else:
        k, v, q = rng.normal(0, 1, (n, dim)), rng.normal(0, 1, (n, dim)), rng.normal(0, 2, (rows, dim))
    # as a pressing leaves them: at the bounds, between them, and from other merges beyond
    beta = rng.uniform(-2, 4.5, n) if before else np.zeros(n)
    if before:
        beta[:2] = [-2, -5]
    weight = np.where(np.arange(rows) % 4 == 0, 20.0, 1.0)
    keep = np.sort(rng.choice(n, slots, replace=False))
    if before:
        keep[:2] = [0, 1]
        keep = np.sort(np.unique(keep))
    is_exact = rng.random(keep.size) < exact
    return f32(q), f32(k), f32(v), f32(beta), f32(weight / weight.mean()), keep, is_exact


def fit_votes(x, lse, u, beta, n_tokens, exact):
    """fitB2, exact slots left alone; further pressings keep the sum of all moves between -2 and max(4, log n_tokens)."""
    a = np.exp(x - lse[:, None])
    most = max(4.0, np.log(n_tokens))
    lo = np.exp(np.minimum(0, np.maximum(-2, -2 - beta)))
    hi = np.exp(np.maximum(0, np.minimum(4, most - beta)))
    lo[exact] = hi[exact] = 1
    w = np.ones(x.shape[1])
    for _ in range(ROUNDS):
        y = np.maximum(a @ w, 1e-6)
        w = w * ((a * (u / y)[:, None]).sum(0) + 1e-4) / ((a * u[:, None]).sum(0) + 1e-4)
        w = np.clip(w, lo, hi)
    return w


def fit_values(x, w, o, u, v, free, lam):
    """fitV2"""
    root = np.sqrt(u)[:, None]
    p = softmax(x + np.log(w))
    r = (o - p @ v) * root
    p = p * root
    ridge = lam * (p**2).sum() / p.shape[0]
    pf = p[:, free]
    out = v.copy()
    out[free] += np.linalg.solve(pf.T @ pf + ridge * np.eye(pf.shape[1]), pf.T @ r)
    return out


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    for i, (name, (rows, n, slots, dim, exact, lam, clusters, before)) in enumerate(CASES.items()):
        rng = np.random.default_rng(i)
        q, k, v, beta, u, keep, is_exact = head(rng, rows, n, slots, dim, exact, clusters, before)
        x = q.astype(np.float64) @ k.astype(np.float64).T / np.sqrt(dim) + beta
        lse = x.max(1) + np.log(np.exp(x - x.max(1, keepdims=True)).sum(1))
        lam, lse, o = f32(lam), f32(lse), f32(softmax(x) @ v)
        kept = [np.float64(z) for z in (x[:, keep], lse, u, beta[keep], o, v[keep], lam)]
        xk, lse64, u64, bk, o64, vk, lam64 = kept
        n_tokens = 5000 if before else n
        w = fit_votes(xk, lse64, u64, bk, n_tokens, is_exact)
        fit = fit_values(xk, w, o64, u64, vk, ~is_exact, lam64)
        values = fit_values(xk, np.ones(keep.size), o64, u64, vk, ~is_exact, lam64)
        with open(os.path.join(folder, name + ".bin"), "wb") as f:
            f.write(np.array([rows, n, keep.size, dim, n_tokens], "<i4").tobytes() + lam.tobytes())
            for z in (q, k, v, beta, o, lse, u):
                f.write(z.tobytes())
            f.write(keep.astype("<i4").tobytes() + is_exact.astype("<i4").tobytes())
            for z in (bk + np.log(w), fit, values):
                f.write(f32(z).tobytes())
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as f:
        f.write("Votes and values fitted to random and clustered heads, in float64 by numpy "
                f"{np.__version__}:\n`tests/tools/golden_kv_fit.py tests/golden/kv_fit`, which also says the form.\n")


if __name__ == "__main__":
    main()
