/* Pressing heads: what a probe's host chose to keep is read, fitted and written where it lies (kvcache/fit.c is the definition
 * of the fit, kernels/probe.h that of the pages).
 *
 * An item is one KV head of one layer. As many as fit the scratch (cu_state.partial) go together through these launches, in
 * which a head's results do not depend on the others:
 *
 *      gather_kept              keys, values and biases of the kept slots as f32, those whose values may change first
 *      turn_rows, probe_rows    the references, again (probe.cu): with what they got they are 0.3 GB for an 8B model, which
 *                               would be there and back on the bus for longer than they take to be made
 *      multiply<logits>         rows x slots, f32 (dense.cuh): a block a tile of 64 x 64
 *      soften_rows              exponentials below the largest of a row
 *      fit_votes                a block a head: 10 multiplicative rounds
 *      weigh_rows               the weights p of what is kept
 *      multiply<residual>       what p v misses of the references' outputs
 *      multiply<gram>           p^T p of the columns that change; p p^T where those are more than rows
 *      multiply<columns>        p^T times the residual, or, by rows, the solution
 *      solve_values             a block a head: a Cholesky factor, and the residual past it (dense.cuh)
 *      add_values               if all stay numbers
 *      write_pages              a block a page
 *
 * All pages of the batch have been read before one is written, and a narrow page is one head's: pages may be rewritten in place.
 *
 * Bytes moved, R rows, N kept slots of which M change, D dims, nearly all in L2: R N floats 26 times (20 of them votes). FLOP:
 * 4 R N D (logits, residual), R M^2 (gram), 2 R M D, M^3 / 3 + 2 M^2 D. An 8B model at 8,192 tokens with 256 kept has 256 items of
 * R = 1,024 at most, N = 256, M = 128, D = 128: 190 MFLOP and 27 MB a head, 48 GFLOP and 7 GB in all. 26 heads fit at once.
 * Estimates for an H100, not measured: products 3 ms at 15 TFLOPS of f32; votes 10 batches of .2 ms, each block reading from
 * L2 at 100 GB/s; systems 10 batches of .1 ms; the references 1.1 TFLOP, 4 ms at half of what attention reaches; 160 launches
 * .5 ms. With the 512 rows that options ask for by default: half of it all.
 */
#include <string.h>

#include "kernels/cuda/slots.cuh"

/* ---- batches ----------------------------------------------------------------------------------------------------- */

enum { BATCH_MOST = 64 };

/* Heads [first, first + n), and where theirs begin in the host's tables. */
struct batch {
    int first, n, most; /* most slots that one keeps */
    int keep0, n_keep, block0, n_block;
    size_t floats;
    struct press_item item[BATCH_MOST];
};

static int page_slots(const struct be_probe *p)
{
    return kv_narrow_slots(p->kv.narrow_type);
}

/* Bytes of the scratch for a head: its parts, its references, its share of the tables. */
static size_t head_bytes(const struct probe_job &j, int n, int n_fit)
{
    struct press_head h;
    size_t rows = (size_t)j.n_rows, slots = (size_t)n;
    size_t floats = press_cut(&h, NULL, j.n_rows, j.dim, n, n_fit);
    floats += rows * (2 * (size_t)j.dim + 3) + 4; /* q, o; lse, tail_lse, weight */
    return floats * sizeof(float) + slots * 14 + sizeof(struct press_item) + 64;
}

/* Beside the heads: tables and parts are aligned. */
enum { BATCH_SLACK = 16 * SCRATCH_ALIGN };

int cu_press_most(const struct probe_job &j, size_t used)
{
    int low = 0,
        high = (int)(CU_PARTIAL_BYTES / sizeof(float)) / j.dim; /* low fits, high does not */
    while (high - low > 1) {
        int n = low + (high - low) / 2;
        bool fits = used + BATCH_SLACK + head_bytes(j, n, n) <= CU_PARTIAL_BYTES;
        low = fits ? n : low;
        high = fits ? high : n;
    }
    return low;
}

/* The heads behind those of b, as many as fit. */
static void batch_next(struct batch *b, const struct be_press *p, const struct probe_job &j,
                       size_t used)
{
    const struct be_probe *q = p->asked;
    int items = q->n_layers * q->kv.n_kv_heads, page = page_slots(q);
    b->first += b->n;
    b->keep0 += b->n_keep;
    b->block0 += b->n_block;
    b->n = b->most = b->n_keep = b->n_block = 0;
    b->floats = 0;
    used += BATCH_SLACK;
    while (b->n < BATCH_MOST && b->first + b->n < items) {
        int n = p->n_keep[b->first + b->n], n_fit = 0;
        for (int i = 0; p->values && i < n; i++)
            n_fit += !p->exact[b->keep0 + b->n_keep + i];
        used += head_bytes(j, n, n_fit);
        if (used > CU_PARTIAL_BYTES)
            break;
        struct press_head h;
        b->item[b->n++] = press_item{ n, n_fit, b->n_keep, b->n_block, b->floats };
        b->floats += press_cut(&h, NULL, j.n_rows, j.dim, n, n_fit);
        b->n_keep += n;
        b->n_block += (n + page - 1) / page;
        b->most = n > b->most ? n : b->most;
    }
}

/* The job of the batch: its tables, and room for what is made of them. */
static struct press_job batch_job(const struct batch *b, const struct be_press *p,
                                  const struct probe_job &refs, struct scratch c)
{
    struct press_job j = {};
    size_t n = (size_t)b->n, slots = (size_t)b->n_keep, rows = (size_t)refs.n_rows;
    j.refs = refs;
    j.refs.item0 = b->first;
    j.item = scratch_table(&c, b->item, n);
    j.keep = scratch_table(&c, p->keep + b->keep0, slots);
    j.exact = scratch_table(&c, p->exact + b->keep0, slots);
    j.block = scratch_table(&c, p->block + b->block0, (size_t)b->n_block);
    if (p->rounds > 0) {
        j.low = scratch_table(&c, p->low + b->keep0, slots);
        j.high = scratch_table(&c, p->high + b->keep0, slots);
    }
    if (rows > 0)
        j.weight = scratch_table(&c, p->weight + (size_t)b->first * rows, n * rows);
    j.refs.out = (float *)scratch_take(&c, n * refs.item_floats * sizeof(float));
    j.refs.rows = (float *)scratch_take(&c, n * 2 * rows * (size_t)refs.dim * sizeof(float));
    j.room = (float *)scratch_take(&c, b->floats * sizeof(float));
    ASSERT(c.used <= CU_PARTIAL_BYTES);
    j.pool = p->asked->kv.pool;
    j.side = (float *)p->asked->kv.beta;
    j.rounds = p->rounds;
    j.scale = p->asked->scale;
    j.lambda = p->lambda;
    return j;
}

/* ---- launches ---------------------------------------------------------------------------------------------------- */

template <class WHAT>
static void launch_product(struct cu_state *s, const struct press_job &j, unsigned n, int down,
                           int across)
{
    CU_LAUNCH(s->stream, dim3((unsigned)dense_tiles(down, across), n), dim3(DENSE_THREADS), 0,
              multiply<WHAT>, j);
}

static void launch_fit(struct cu_state *s, const struct press_job &j, const struct be_press *p,
                       unsigned n, int most)
{
    int rows = j.refs.n_rows, dim = j.refs.dim, size = most < rows ? most : rows;
    dim3 by_row(cu_div_up((size_t)rows, PRESS_WARPS), n);
    cu_probe_launch(s, j.refs, &p->asked->kv, n, 0);
    launch_product<logits>(s, j, n, rows, most);
    CU_LAUNCH(s->stream, by_row, dim3(PRESS_THREADS), 0, soften_rows, j);
    if (p->rounds > 0)
        CU_LAUNCH(s->stream, dim3(1, n), dim3(VOTES_THREADS), 0, fit_votes, j);
    if (!p->values)
        return;
    CU_LAUNCH(s->stream, by_row, dim3(PRESS_THREADS), 0, weigh_rows, j);
    launch_product<residual>(s, j, n, rows, dim);
    launch_product<gram>(s, j, n, size, size);
    launch_product<columns<false>>(s, j, n, size, dim);
    CU_LAUNCH(s->stream, dim3(1, n), dim3(DENSE_THREADS), 0, solve_values, j);
    if (most > rows)
        launch_product<columns<true>>(s, j, n, most, dim);
    CU_LAUNCH(s->stream, dim3(1, n), dim3(PRESS_THREADS), 0, add_values, j);
}

template <enum kv_type T>
static void launch(struct cu_state *s, const struct press_job &j, const struct be_press *p,
                   const struct batch *b)
{
    const struct be_probe *q = p->asked;
    bool q8 = T != KV_F32 && q->kv.narrow_type == KV_NARROW_Q8;
    unsigned n = (unsigned)b->n;
    dim3 slots(cu_div_up((size_t)b->most, SLOTS_WARPS), n);
    dim3 pages(cu_div_up((size_t)b->most, (size_t)page_slots(q)), n);
    if (q8)
        CU_LAUNCH(s->stream, slots, dim3(SLOTS_THREADS), 0, (gather_kept<T != KV_F32, T>), j);
    else
        CU_LAUNCH(s->stream, slots, dim3(SLOTS_THREADS), 0, (gather_kept<false, T>), j);
    if (j.refs.n_rows > 0)
        launch_fit(s, j, p, n, b->most);
    if (q8)
        CU_LAUNCH(s->stream, pages, dim3(SLOTS_THREADS), 0, write_pages_q8, j);
    else
        CU_LAUNCH(s->stream, pages, dim3(SLOTS_THREADS), 0, write_pages<T>, j);
    CU_LAUNCHED(s);
}

static void cuda_press(struct be *be, const struct be_press *p)
{
    struct cu_state *s = cu_of(be);
    const struct be_probe *q = p->asked;
    struct probe_job refs = cu_probe_job(q);
    struct scratch c = { be, 0 };
    struct batch b = {};
    int items = q->n_layers * q->kv.n_kv_heads;
    cu_probe_tables(&c, q, &refs);
    if (p->rounds == 0 && !p->values)
        refs.n_rows = refs.n_ref = 0;
    refs.room = 0;
    refs.item_floats = ((size_t)refs.n_rows * 2 + 3) / 4 * 4;
    for (batch_next(&b, p, refs, c.used); b.first < items && cu_ok(s);
         batch_next(&b, p, refs, c.used)) {
        ASSERT(b.n > 0); /* else a head keeps more than probe said */
        if (b.most == 0)
            continue;
        struct press_job j = batch_job(&b, p, refs, c);
        if (q->kv.type == KV_F16)
            launch<KV_F16>(s, j, p, &b);
        else if (q->kv.type == KV_BF16)
            launch<KV_BF16>(s, j, p, &b);
        else
            launch<KV_F32>(s, j, p, &b);
    }
}

void cu_ops_press(struct be_ops *ops)
{
    ops->press = cuda_press;
}
