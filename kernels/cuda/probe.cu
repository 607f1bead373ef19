/* Pressing a cache: what kept queries make of its slots (kernels/probe.h), all heads of all layers at once. What becomes of the
 * slots then chosen: press.cu.
 *
 * A row is a query of one head of a KV head's group; an item is one KV head of one layer. Three launches, each over all
 * items that fit the scratch (cu_state.partial, free between steps) together:
 *
 *      turn_rows       references as f32, turned to the positions to come;
 *      probe_rows      their attention, with attention's own spans (attend_span.cuh): a block of four warps walks all spans
 *                      of 16 * MT rows. Not split over slots: all heads of a model are some hundred blocks as it is, and so
 *                      a row's sum has one order, fixed by the head's slots;
 *      probe_columns   a block owns 64 slots and takes the rows of all sets past them, 16 * MT at a time. Keys of up to 128
 *                      dims in 16 bits stay in registers. With L_i, the log-sum-exp of row i, the share of slot j is
 *                      2^(x_ij - L_i), x in log2, and columns are summed in the order of the rows, a lane's own 2 * MT
 *                      first, then over the 8 lanes that share its slots. Rows rise in what they see: tiles of rows that
 *                      see nothing of the block's slots are left out.
 *
 * Bytes moved, R rows of references, Q rows of sets, N slots of a head of D dims in 16 bits: turn_rows 6 R D; probe_rows
 * 4 N D for each 64 rows, mostly from L2, and 12 R D; probe_columns 2 N D of keys once, and 2 Q D + 4 R D of queries for each
 * 64 slots, from L2; results over the bus: 24 N + 8 R. FLOP: 4 R N D, then 2 R N D + Q N D (sets see half of the slots).
 * For 8,192 tokens, 256 references and as many queries of sets of 4 heads of 128 dims, R = Q = 1,024: 7.5 GFLOP a head, 1.9
 * TFLOP for the 256 heads of an 8B model, whose prefill is 140. There is an exponential for each 4 D FLOP of attention and 2 D
 * of a column sum; an H100 multiprocessor does 4,096 FLOP and 16 exponentials a clock, 256 to one: at 128 dims the two are even.
 * Over the bus go 0.2 MB a head, 52 MB: 2 ms at 25 GB/s, copied out by all workers as it comes.
 */
#include <string.h>

#include "kernels/cuda/probe.cuh"

/* ---- the way to the host ----------------------------------------------------------------------------------------- */

/* A piece of the half that is here, and where it goes. */
struct drain_part {
    char *to;
    size_t from, bytes;
};

/* Results on their way to the host, in the order in which they lie on the device. While one half of the pinned buffer is
 * copied out by the workers, the other is on its way. */
struct drain {
    struct be *be;
    const char *device;
    size_t left;     /* bytes not asked for yet */
    size_t next;     /* bytes on their way */
    size_t at, have; /* of the half that is here: [at, have) not taken yet */
    int half, n;     /* which that is; parts of it to be copied */
    struct drain_part part[64];
};
#define DRAIN_BYTES (CU_PINNED_BYTES / 2)
#define DRAIN_PART  ((size_t)128 << 10)

/* On a lost device what arrives is zeros. */
static void copy_parts(void *arg, int first, int last, int thread)
{
    const struct drain *d = (const struct drain *)arg;
    const struct cu_state *s = cu_of(d->be);
    (void)thread;
    for (const struct drain_part *p = d->part + first; p < d->part + last; p++)
        if (cu_ok(s))
            memcpy(p->to, s->pinned + (size_t)d->half * DRAIN_BYTES + p->from, p->bytes);
        else
            memset(p->to, 0, p->bytes);
}

static void drain_copy(struct drain *d)
{
    par_for(d->be->par, d->n, 1, copy_parts, d);
    d->n = 0;
}

static void drain_ask(struct drain *d)
{
    struct cu_state *s = cu_of(d->be);
    char *to = s->pinned + (size_t)(1 - d->half) * DRAIN_BYTES;
    d->next = d->left < DRAIN_BYTES ? d->left : DRAIN_BYTES;
    if (cu_ok(s) && d->next > 0)
        CU_CHECK(s, cudaMemcpyAsync(to, d->device, d->next, cudaMemcpyDeviceToHost, s->stream));
    d->device += d->next;
    d->left -= d->next;
}

static void drain_more(struct drain *d)
{
    struct cu_state *s = cu_of(d->be);
    drain_copy(d);
    if (cu_ok(s))
        CU_CHECK(s, cudaStreamSynchronize(s->stream));
    d->half = 1 - d->half;
    d->at = 0;
    d->have = d->next;
    drain_ask(d);
}

static void drain_open(struct drain *d, struct be *be, const void *device, size_t bytes)
{
    *d = drain();
    d->be = be;
    d->device = (const char *)device;
    d->left = bytes;
    drain_ask(d);
}

/* The next n of `room` floats; the others are left out. dst is filled when drain_copy() has been called behind it. */
static void drain_take(struct drain *d, float *dst, size_t n, size_t room)
{
    const size_t want = n * sizeof *dst, all = room * sizeof *dst;
    for (size_t i = 0; i < all;) {
        if (d->at == d->have)
            drain_more(d);
        if (d->n == sizeof d->part / sizeof *d->part)
            drain_copy(d);
        size_t some = d->have - d->at < all - i ? d->have - d->at : all - i;
        some = some < DRAIN_PART ? some : DRAIN_PART;
        size_t keep = i >= want ? 0 : want - i < some ? want - i : some;
        if (keep > 0)
            d->part[d->n++] = drain_part{ (char *)dst + i, d->at, keep };
        d->at += some;
        i += some;
    }
}

/* ---- the ops ----------------------------------------------------------------------------------------------------- */

template <bool Q, enum kv_type T, int NT>
static void launch(struct cu_state *s, const struct probe_job &j, unsigned n, unsigned tiles)
{
    constexpr int MT = T == KV_F32 || NT > 8 ? 1 : NT > 4 ? 2 : 4; /* as attention's many rows */
    typedef struct attend_block<T, MT, NT> block;
    const size_t room = sizeof(attend_fragment<T>);
    if (j.n_rows > 0) {
        CU_LAUNCH(s->stream, dim3(cu_div_up((size_t)j.n_rows, PROBE_WARPS), n), dim3(PROBE_THREADS),
                  0, turn_rows<T>, j);
        CU_LAUNCH(s->stream, dim3(cu_div_up((size_t)j.n_rows, block::ROWS), n),
                  dim3(ATTEND_THREADS), block::FRAGMENTS * room, (probe_rows<Q, T, MT, NT>), j);
    }
    if (tiles > 0)
        CU_LAUNCH(s->stream, dim3(tiles, n), dim3(ATTEND_THREADS),
                  (size_t)block::K_STEPS * MT * CU_WARP * room, (probe_columns<Q, T, MT, NT>), j);
    CU_LAUNCHED(s);
}

template <bool Q, enum kv_type T>
static void launch_type(struct cu_state *s, const struct probe_job &j, unsigned n, unsigned tiles)
{
    if (j.dim <= 64)
        launch<Q, T, 2>(s, j, n, tiles);
    else if (j.dim <= 128)
        launch<Q, T, 4>(s, j, n, tiles);
    else if (j.dim <= 256)
        launch<Q, T, 8>(s, j, n, tiles);
    else
        launch<Q, T, 16>(s, j, n, tiles);
}

static int most_narrow(const struct be_probe *p)
{
    int most = 0;
    for (int i = 0; p->n_narrow != NULL && i < p->n_layers * p->kv.n_kv_heads; i++)
        most = p->n_narrow[i] > most ? p->n_narrow[i] : most;
    return most;
}

struct probe_job cu_probe_job(const struct be_probe *p)
{
    struct probe_job j = {};
    j.pool = p->kv.pool;
    j.beta = p->kv.beta;
    j.n_heads = p->n_heads;
    j.n_kv_heads = p->kv.n_kv_heads;
    j.group = p->n_heads / p->kv.n_kv_heads;
    j.dim = p->kv.head_dim;
    j.n_wide = p->n_wide;
    j.n_tail = p->n_tail;
    j.wide_pages = pages_of(p->n_wide) + (p->n_tail > 0);
    j.narrow_pages = p->narrow_pages;
    j.n_records = p->n_records;
    memcpy(j.n_set, p->n_set, sizeof j.n_set);
    j.n_ref = p->n_ref;
    j.n_rows = p->n_ref * j.group;
    j.half = p->half;
    j.half_split = p->half_split;
    j.scale = p->scale * 1.44269504f; /* log2(e) */
    j.lse_at = kv_record_lse(p->kv.type, p->n_heads, p->kv.head_dim);
    j.room = (most_narrow(p) + p->n_wide + 3) / 4 * 4;
    j.item_floats = (size_t)COLUMNS * (size_t)j.room + ((size_t)j.n_rows * 2 + 3) / 4 * 4;
    return j;
}

void cu_probe_tables(struct scratch *c, const struct be_probe *p, struct probe_job *j)
{
    size_t layers = (size_t)p->n_layers, items = layers * (size_t)p->kv.n_kv_heads, seen = 0;
    size_t angles = (size_t)p->n_ref * (size_t)p->half;
    for (int i = 0; i < BE_PROBE_SETS; i++)
        seen += (size_t)p->n_set[i];
    j->wide = scratch_table(c, p->wide, layers * (size_t)j->wide_pages);
    j->narrow = scratch_table(c, p->narrow, items * (size_t)p->narrow_pages);
    j->n_narrow = scratch_table(c, p->n_narrow, items);
    j->record = scratch_table(c, p->record, layers * (size_t)p->n_records);
    j->see = scratch_table(c, p->see, seen);
    j->cos = scratch_table(c, p->cos, angles);
    j->sin = scratch_table(c, p->sin, angles);
}

static void take_item(struct drain *d, const struct be_probe *p, const struct probe_job *j, int i)
{
    const struct be_probe_out *o = &p->out[i];
    size_t n = (size_t)(p->n_wide + (p->n_narrow != NULL ? p->n_narrow[i] : 0));
    size_t room = (size_t)j->room, rows = (size_t)j->n_rows;
    for (int k = 0; k < BE_PROBE_SETS; k++)
        drain_take(d, o->set[k], n, room);
    drain_take(d, o->mean, n, room);
    drain_take(d, o->rms, n, room);
    drain_take(d, o->beta, n, room);
    drain_take(d, o->lse, rows, rows);
    drain_take(d, o->tail_lse, rows, j->item_floats - (size_t)COLUMNS * room - rows);
}

void cu_probe_launch(struct cu_state *s, const struct probe_job &j, const struct be_kv *kv,
                     unsigned n, unsigned tiles)
{
    bool q8 = kv->narrow_type == KV_NARROW_Q8;
    if (kv->type == KV_F16 && q8)
        launch_type<true, KV_F16>(s, j, n, tiles);
    else if (kv->type == KV_F16)
        launch_type<false, KV_F16>(s, j, n, tiles);
    else if (kv->type == KV_BF16 && q8)
        launch_type<true, KV_BF16>(s, j, n, tiles);
    else if (kv->type == KV_BF16)
        launch_type<false, KV_BF16>(s, j, n, tiles);
    else
        launch_type<false, KV_F32>(s, j, n, tiles);
}

static int cuda_probe(struct be *be, const struct be_probe *p)
{
    struct cu_state *s = cu_of(be);
    struct probe_job j = cu_probe_job(p);
    struct scratch c = { be, 0 };
    struct drain d;
    cu_probe_tables(&c, p, &j);
    int keep = cu_press_most(j, c.used);
    size_t item = j.item_floats * sizeof(float);
    size_t rows = 2 * (size_t)j.n_rows * (size_t)j.dim * sizeof(float);
    size_t items = (size_t)p->n_layers * (size_t)p->kv.n_kv_heads;
    size_t n =
        scratch_left(&c) / (item + rows); /* both are whole SCRATCH_ALIGNs, dims being even */
    unsigned tiles =
        cu_div_up((size_t)most_narrow(p), ATTEND_TILE) + cu_div_up((size_t)p->n_wide, ATTEND_TILE);
    if (n == 0 || keep == 0)
        return 0;
    n = n < items ? n : items;
    j.out = (float *)scratch_take(&c, n * item);
    j.rows = (float *)scratch_take(&c, n * rows);
    for (size_t first = 0; first < items; first += n) {
        size_t some = items - first < n ? items - first : n;
        j.item0 = (int)first;
        if (cu_ok(s))
            cu_probe_launch(s, j, &p->kv, (unsigned)some, tiles);
        drain_open(&d, be, j.out, some * item);
        for (size_t i = 0; i < some; i++)
            take_item(&d, p, &j, (int)(first + i));
        drain_copy(&d);
    }
    return keep;
}

void cu_ops_probe(struct be_ops *ops)
{
    ops->probe = cuda_probe;
}
