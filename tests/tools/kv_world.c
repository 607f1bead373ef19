#include "tests/tools/kv_world.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "kvcache/score.h"
#include "server/base/mem.h"
#include "tests/tools/elem.h"

/* ---- a device -------------------------------------------------------------------------------------------------- */

static const uintptr_t FAR = (uintptr_t)1 << 62;

static void *far_alloc(struct be *be, size_t bytes)
{
    (void)be;
    void *p = mem_map(bytes);
    return p == NULL ? NULL : (void *)((uintptr_t)p ^ FAR);
}

static void far_free(struct be *be, void *p, size_t bytes)
{
    (void)be;
    mem_unmap((void *)((uintptr_t)p ^ FAR), bytes);
}

static void far_upload(struct be *be, void *dst, const void *src, size_t bytes)
{
    (void)be;
    memcpy((void *)((uintptr_t)dst ^ FAR), src, bytes);
}

static void far_download(struct be *be, void *dst, const void *src, size_t bytes)
{
    (void)be;
    memcpy(dst, (const void *)((uintptr_t)src ^ FAR), bytes);
}

/* Its state is NULL, or a count of waits after which it is lost. */
static int far_sync(struct be *be, struct err *e)
{
    int *left = be->state;
    if (left == NULL || (*left)-- > 0)
        return 0;
    return err_set(e, ERR_DEVICE, "lost");
}

static const struct be_ops far_ops = { .name = "far",
                                       .alloc = far_alloc,
                                       .free = far_free,
                                       .upload = far_upload,
                                       .download = far_download,
                                       .sync = far_sync };

/* ---- a world --------------------------------------------------------------------------------------------------- */

static const float inv_freq[KV_DIM / 2] = { 1, .32f, .1f, .032f, .01f, .0032f, .001f, .00032f };
const struct kv_rope kv_world_rope = { inv_freq, KV_DIM / 2, true };

static void open_pool(struct kv_world *w, struct be *be, enum kv_type type, enum kv_narrow narrow,
                      int samples)
{
    struct err e;
    struct kv_shape shape = { KV_LAYERS,           KV_HEADS, KV_DIM, type,
                              KV_HEADS * KV_GROUP, samples,  narrow };
    assert_int_equal(kv_pool_open(&w->p, be, &shape, KV_PAGES * KV_PAGE, &e), 0);
    w->c = NULL;
    kv_world_compactor(w);
}

static void open_cpu(struct kv_world *w, enum kv_type type, enum kv_narrow narrow, int samples,
                     int threads, bool device)
{
    struct err e;
    struct be_config config = { .n_threads = threads, .isa = "ref" };
    assert_int_equal(be_open(&w->be, &config, &e), 0);
    w->far = *w->be;
    w->far.ops = &far_ops;
    w->far.host = false;
    w->far.state = NULL;
    open_pool(w, device ? &w->far : w->be, type, narrow, samples);
}

void kv_world_open(struct kv_world *w, enum kv_type type, int threads, bool device)
{
    open_cpu(w, type, KV_NARROW_SAME, KV_SAMPLES, threads, device);
}

void kv_world_open_exact(struct kv_world *w, enum kv_type type, int threads, bool device)
{
    open_cpu(w, type, KV_NARROW_SAME, KV_PAGE, threads, device);
}

void kv_world_open_q8(struct kv_world *w, int threads, bool device)
{
    open_cpu(w, KV_BF16, KV_NARROW_Q8, KV_SAMPLES, threads, device);
}

void kv_world_open_cuda(struct kv_world *w, enum kv_type type, enum kv_narrow narrow)
{
    struct err e;
    struct be_config config = { .device = "cuda", .n_threads = 2 };
    assert_int_equal(be_open(&w->be, &config, &e), 0);
    w->far = *w->be;
    open_pool(w, &w->far, type, narrow, KV_SAMPLES);
}

void kv_world_compactor(struct kv_world *w)
{
    struct err e;
    kv_compactor_close(w->c);
    assert_int_equal(kv_compactor_open(&w->c, w->p, &kv_world_rope, KV_GROUP, KV_SCALE, &e), 0);
}

void kv_world_close(struct kv_world *w)
{
    struct kv_stats st;
    assert_true(kv_pool_check(w->p));
    kv_prefix_clear(w->p);
    kv_pool_stats(w->p, &st);
    assert_int_equal(st.free, st.pages);
    kv_compactor_close(w->c);
    kv_pool_close(w->p);
    be_close(w->be);
}

/* In [-2, 2). */
float kv_made_up(enum kv_type type, int kind, int layer, int head, int pos, int i)
{
    uint32_t x = (uint32_t)((((kind * 8 + layer) * 8 + head) * 4096 + pos) * 64 + i) * 2654435761u;
    x = (x ^ x >> 15) * 2246822519u;
    return elem_rounded(type, (float)(x >> 8 & 0xffff) / 16384 - 2);
}

static void read_q8(const char *block, const float *side, int t, float *k, float *v)
{
    const int8_t *key = (const int8_t *)block, *value = key + KV_PAGE_Q8 * KV_DIM;
    for (int i = 0; i < KV_DIM; i++) {
        k[i] = (float)key[kv_k_index_q8(t, i)] * side[KV_PAGE_Q8 + t];
        v[i] = (float)value[kv_v_index(t, i, KV_DIM)] * side[2 * KV_PAGE_Q8 + t];
    }
}

void kv_slots_read(const struct kv_world *w, const struct kv_seq *s, int layer, int head,
                   struct kv_slots *out)
{
    static char block[2 * KV_PAGE * KV_DIM * 4];
    static float side[3 * KV_PAGE_Q8];
    int i_head = layer * KV_HEADS + head, n_narrow = kv_seq_pressed(s) ? s->n_narrow[i_head] : 0;
    const struct kv_shape *shape = &w->p->shape;
    out->n = n_narrow + s->n_tokens - s->wide_pos0;
    for (int j = 0; j < out->n; j++) {
        bool narrow = j < n_narrow;
        int page = narrow ? kv_narrow_slots(shape->narrow_type) : KV_PAGE;
        int at = narrow ? j : j - n_narrow, t = at % page;
        int32_t b =
            narrow ? s->narrow[i_head][at / page] : seq_wide(s, layer)[at / page] * KV_HEADS + head;
        if (t == 0 || j == n_narrow)
            w->p->be->ops->download(w->p->be, block, pool_block_at(w->p, b), w->p->block_bytes);
        if (narrow && t == 0)
            w->p->be->ops->download(w->p->be, side, pool_beta_at(w->p, b), w->p->side_bytes);
        out->pos[j] = narrow ? s->slot[i_head][j].pos : s->wide_pos0 + at;
        out->beta[j] = narrow ? side[t] : 0;
        if (narrow && shape->narrow_type == KV_NARROW_Q8)
            read_q8(block, side, t, out->k[j], out->v[j]);
        for (int i = 0; i < KV_DIM && (!narrow || shape->narrow_type == KV_NARROW_SAME); i++) {
            out->k[j][i] = elem_load(shape->type, block, kv_k_index(t, i));
            out->v[j][i] =
                elem_load(shape->type, block, KV_PAGE * KV_DIM + kv_v_index(t, i, KV_DIM));
        }
    }
}

double kv_slots_logit(const struct kv_slots *k, int j, const float *q)
{
    double x = 0;
    for (int i = 0; i < KV_DIM; i++)
        x += (double)q[i] * (double)k->k[j][i];
    return x * (double)KV_SCALE + (double)k->beta[j];
}

double kv_slots_lse(const struct kv_slots *k, const float *q, int pos)
{
    double sum = 0;
    for (int j = 0; j < k->n; j++)
        sum += k->pos[j] <= pos ? exp(kv_slots_logit(k, j, q)) : 0;
    return log(sum);
}

static void put_token(const struct kv_world *w, const struct kv_seq *s, int layer, int pos)
{
    static char block[2 * KV_PAGE * KV_DIM * 4];
    struct be *be = w->p->be;
    enum kv_type type = w->p->shape.type;
    int at = pos - s->wide_pos0, t = at % KV_PAGE;
    for (int h = 0; h < KV_HEADS; h++) {
        void *there = pool_block_at(w->p, seq_wide(s, layer)[at / KV_PAGE] * KV_HEADS + h);
        be->ops->download(be, block, there, w->p->block_bytes);
        for (int i = 0; i < KV_DIM; i++) {
            elem_store(type, block, kv_k_index(t, i), kv_made_up(type, 0, layer, h, pos, i));
            elem_store(type, block, KV_PAGE * KV_DIM + kv_v_index(t, i, KV_DIM),
                       kv_made_up(type, 1, layer, h, pos, i));
        }
        be->ops->upload(be, there, block, w->p->block_bytes);
    }
}

static void put_record(const struct kv_world *w, const struct kv_seq *s, int layer, int pos)
{
    static char record[1024];
    static struct kv_slots k;
    struct be *be = w->p->be;
    enum kv_type type = w->p->shape.type;
    struct be_keep keep;
    float q[KV_DIM];
    if (!kv_seq_keep(s, w->p, layer, pos, &keep))
        return;
    size_t bytes = kv_record_bytes(type, KV_HEADS * KV_GROUP, KV_DIM);
    assert_true(bytes <= sizeof record);
    for (int h = 0; h < KV_HEADS * KV_GROUP; h++) {
        if (h % KV_GROUP == 0)
            kv_slots_read(w, s, layer, h / KV_GROUP, &k);
        for (int i = 0; i < KV_DIM; i++) {
            q[i] = kv_made_up(type, 2, layer, h, pos, i);
            elem_store(type, record, (size_t)h * KV_DIM + (size_t)i, q[i]);
        }
        float lse = (float)kv_slots_lse(&k, q, pos);
        memcpy(record + kv_record_lse(type, KV_HEADS * KV_GROUP, KV_DIM) + (size_t)h * sizeof lse,
               &lse, sizeof lse);
    }
    if (keep.sample != NULL)
        be->ops->upload(be, keep.sample, record, bytes);
    if (keep.window != NULL)
        be->ops->upload(be, keep.window, record, bytes);
}

void kv_world_grow(const struct kv_world *w, struct kv_seq *s, int n)
{
    int from = s->n_tokens, first = kv_seq_by_layer(s) ? s->layer : 0;
    int end = kv_seq_by_layer(s) ? first + 1 : KV_LAYERS;
    assert_int_equal(kv_seq_reserve(s, w->p, n), 0);
    for (int l = first; l < end; l++)
        for (int pos = from; pos < n; pos++)
            put_token(w, s, l, pos);
    s->n_tokens = n;
    for (int l = first; l < end; l++)
        for (int pos = from; pos < n; pos++)
            put_record(w, s, l, pos);
}

void kv_world_start(const struct kv_world *w, struct kv_seq *s, const struct kv_options *o,
                    int n_prompt, int max_tokens)
{
    struct err e;
    assert_int_equal(kv_seq_open(s, w->p, o, n_prompt, max_tokens, &e), 0);
    kv_world_grow(w, s, n_prompt);
}

struct kv_report kv_world_press(const struct kv_world *w, struct kv_seq *s)
{
    struct kv_report r = { 0 };
    struct err e;
    assert_true(kv_compact_due(s));
    assert_int_equal(kv_compact(w->c, s, &r, &e), 0);
    assert_false(kv_compact_due(s));
    assert_true(kv_pool_check(w->p));
    return r;
}

static uint64_t mix(uint64_t x, const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x = (x ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
    return x;
}

uint64_t kv_world_bits(const struct kv_world *w, const struct kv_seq *s)
{
    static struct kv_slots k;
    static char record[1024];
    uint64_t x = 14695981039346656037u;
    for (int i = 0; i < KV_ALL; i++) {
        memset(&k, 0, sizeof k);
        kv_slots_read(w, s, i / KV_HEADS, i % KV_HEADS, &k);
        x = mix(x, &k, sizeof k);
        for (int j = 0; kv_seq_pressed(s) && j < s->n_narrow[i]; j++)
            x = mix(x, &s->slot[i][j].score, sizeof(float));
    }
    for (int l = 0; l < KV_LAYERS; l++) {
        for (int pos = s->wide_pos0; pos < s->n_tokens; pos++) {
            struct be_keep keep;
            kv_seq_keep(s, w->p, l, pos, &keep);
            if (keep.sample == NULL)
                continue;
            w->p->be->ops->download(w->p->be, record, keep.sample, w->p->record_bytes);
            x = mix(x, record, w->p->record_bytes);
        }
    }
    return x;
}

static int score(const struct kv_head *h, float *out)
{
    kv_global_local(h, out);
    return 0;
}

const struct kv_policy kv_world_evict = { .name = "evict", .score = score };

struct kv_options kv_world_options(const struct kv_policy *policy, int budget)
{
    return (struct kv_options){
        .policy = policy, .budget = budget, .merge = KV_MERGE_NONE, .split = KV_SPLIT_UNIFORM
    };
}
