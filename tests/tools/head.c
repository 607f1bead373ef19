#include "tests/tools/head.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "kvcache/score.h"
#include "server/base/mem.h"
#include "tests/tools/levels.h"

struct head f;

enum { KINDS = 12 };

void head_make(int n, enum cpu_isa isa)
{
    float kind[2 * KINDS * HEAD_DIM];
    rnd_fill(kind, 2 * KINDS * HEAD_DIM, 1);
    for (int j = 0; j < n; j++) {
        f.pos[j] = j < 8 ? j : 2 * j - 7;
        f.local[j] = powf(fabsf(rnd_unit()), 8);
        f.global[j] = powf(fabsf(rnd_unit()), 8);
        f.last[j] = fabsf(rnd_unit());
        f.mean[j] = fabsf(rnd_unit());
        f.rms[j] = fabsf(rnd_unit());
        f.beta[j] = j % 5 ? 0 : fabsf(rnd_unit());
        int of = (int)(rnd_bits() >> 8) % KINDS;
        for (int d = 0; d < HEAD_DIM; d++) {
            f.k[j * HEAD_DIM + d] =
                (kind[of * HEAD_DIM + d] + 0.3f * rnd_unit()) * (1 + 0.5f * rnd_unit());
            f.v[j * HEAD_DIM + d] = kind[(KINDS + of) * HEAD_DIM + d] + 0.3f * rnd_unit();
        }
    }
    rnd_fill(f.ref_q, HEAD_REFS * HEAD_GROUP * HEAD_DIM, 2);
    for (int i = 0; i < HEAD_REFS; i++) {
        f.ref_pos[i] = 5 + 20 * i;
        f.ref_turn[i] = 2 * n - f.ref_pos[i] + i * 7 % 64;
    }
    for (int i = 0; i < HEAD_DIM / 2; i++)
        f.inv_freq[i] = powf(10000, -(float)i / (HEAD_DIM / 2));
    f.opt =
        (struct kv_options){ .budget = n / 3, .sinks = 4, .window = 8, .local = 0.5f, .phi = 0.5f };
    f.rope = (struct kv_rope){ .inv_freq = f.inv_freq, .half = HEAD_DIM / 2, .half_split = true };
    arena_clear(&f.arena);
    arena_init(&f.arena, 1 << 24);
    f.h = (struct kv_head){ .opt = &f.opt,
                            .layer = 2,
                            .head = 1,
                            .n_layers = 4,
                            .n_kv_heads = 3,
                            .n = n,
                            .n_tokens = 2 * n,
                            .dim = HEAD_DIM,
                            .group = HEAD_GROUP,
                            .scale = 0.25f,
                            .isa = isa,
                            .pos = f.pos,
                            .beta = f.beta,
                            .local = f.local,
                            .global = f.global,
                            .last = f.last,
                            .mean = f.mean,
                            .rms = f.rms,
                            .k = f.k,
                            .v = f.v,
                            .n_ref = HEAD_REFS,
                            .ref_pos = f.ref_pos,
                            .ref_q = f.ref_q,
                            .ref_turn = f.ref_turn,
                            .rope = &f.rope,
                            .arena = &f.arena };
}

int head_close(void **state)
{
    (void)state;
    struct mem_stats m;
    arena_clear(&f.arena);
    mem_stats(&m);
    return m.blocks == 0 ? 0 : -1;
}

void head_score(const char *policy, float *score)
{
    assert_int_equal(kv_policy_find(policy)->score(&f.h, score), 0);
}

void head_protect(float *score)
{
    for (int j = 0; j < f.h.n; j++)
        if (f.pos[j] < f.opt.sinks || j >= f.h.n - f.opt.window)
            score[j] = INFINITY;
}

int head_choose(const struct kv_policy *p, const float *score, int n)
{
    f.kept = (struct kv_kept){
        .n = n, .keep = f.keep, .exact = f.exact, .k = f.kept_k, .v = f.kept_v, .beta = f.kept_beta
    };
    memset(f.exact, p->select != NULL,
           sizeof f.exact); /* select has to say false where it means it */
    int rc = 0;
    if (p->select != NULL)
        rc = p->select(&f.h, score, &f.kept);
    else
        kv_top(score, f.h.n, n, f.keep);
    for (int i = 0; i < n && rc == 0; i++) {
        assert_true(i == 0 || f.keep[i] > f.keep[i - 1]);
        memcpy(f.kept_k + i * HEAD_DIM, f.k + f.keep[i] * HEAD_DIM, HEAD_DIM * sizeof *f.kept_k);
        memcpy(f.kept_v + i * HEAD_DIM, f.v + f.keep[i] * HEAD_DIM, HEAD_DIM * sizeof *f.kept_v);
    }
    return rc;
}

bool head_keeps(int j)
{
    for (int i = 0; i < f.kept.n; i++)
        if (f.keep[i] == j)
            return true;
    return false;
}

int head_rank(int j, const float *by, const float *score)
{
    int better = 0;
    for (int i = 0; i < f.h.n; i++)
        better += score[i] != INFINITY && (by[i] > by[j] || (by[i] == by[j] && i > j));
    return better;
}

double head_dot(const float *a, const float *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

double head_cosine(const float *a, const float *b, int n)
{
    double size = sqrt(head_dot(a, a, n) * head_dot(b, b, n));
    return size > 0 ? head_dot(a, b, n) / size : 0;
}
