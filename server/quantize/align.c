#include "server/quantize/align.h"

#include <stdatomic.h>
#include <string.h>
#include <zlib.h>

#include "server/base/mem.h"
#include "server/base/progress.h"
#include "server/cli/cli.h"
#include "server/cli/fetch.h"

/* So many parts stand for the target: a pair costs a tenth of a millisecond, and texts have thousands of chunks. Strings are
 * short beside gzip's window of 32 KiB, so that t finds all of x there. */
enum { PARTS = 16, MAX_STRING = 1 << 20, BLOCK = 4096 };

/* ---- the length of what is compressed ---------------------------------------------------------------------------- */

static void *zip_alloc(void *arg, unsigned n, unsigned size)
{
    (void)arg;
    return mem_zalloc(n, size);
}

static void zip_free(void *arg, void *p)
{
    (void)arg;
    mem_free(p);
}

static int zip_open(z_stream *z)
{
    *z = (z_stream){ .zalloc = zip_alloc, .zfree = zip_free };
    return deflateInit(z, Z_DEFAULT_COMPRESSION) == Z_OK ? 0 : ERR_NOMEM;
}

static void feed(z_stream *z, const char *x, size_t n, int flush)
{
    unsigned char out[BLOCK];
    z->next_in = (unsigned char *)(uintptr_t)x;
    z->avail_in = (unsigned)n;
    do {
        z->next_out = out;
        z->avail_out = sizeof out;
        (void)deflate(z, flush); /* fails for a broken stream only */
    } while (z->avail_out == 0);
}

/* C of x followed by y. */
static double zip_length(z_stream *z, const char *x, size_t n_x, const char *y, size_t n_y)
{
    (void)deflateReset(z);
    feed(z, x, n_x, Z_NO_FLUSH);
    feed(z, y, n_y, Z_FINISH);
    return (double)z->total_out;
}

static double alignment_of(double x, double y, double both)
{
    return 1 - (both - (x < y ? x : y)) / (x > y ? x : y);
}

int align_strings(const char *x, size_t n_x, const char *y, size_t n_y, double *alignment,
                  struct err *e)
{
    z_stream z;
    if (zip_open(&z) < 0)
        return err_set(e, ERR_NOMEM, "no memory to compress");
    *alignment = alignment_of(zip_length(&z, x, n_x, "", 0), zip_length(&z, y, n_y, "", 0),
                              zip_length(&z, x, n_x, y, n_y));
    (void)deflateEnd(&z);
    return 0;
}

/* ---- chunks ------------------------------------------------------------------------------------------------------ */

struct part {
    const char *text;
    size_t n;
    double length; /* C of it */
};

struct align {
    const struct tok_ids *ids;
    const struct tokenizer *tok;
    int len, chunks;
    struct part part[PARTS];
    int n_parts;
    z_stream *zip;   /* [threads] */
    struct buf *buf; /* [threads] a chunk's text */
    double *score;   /* [chunks] */
    struct progress bar;
    atomic_bool failed;
};

static int chunk_text(const struct align *a, int chunk, struct buf *out)
{
    buf_clear(out);
    return tok_decode(a->tok, a->ids->id + (size_t)chunk * (size_t)a->len, a->len, false, out);
}

static void score_chunks(void *arg, int first, int last, int i_thread)
{
    struct align *a = arg;
    struct buf *b = &a->buf[i_thread];
    z_stream *z = &a->zip[i_thread];
    for (int c = first; c < last && !atomic_load(&a->failed) && !fetch_cancelled(); c++) {
        if (chunk_text(a, c, b) < 0) {
            atomic_store(&a->failed, true);
            return;
        }
        double length = zip_length(z, buf_str(b), b->len, "", 0), sum = 0;
        for (int p = 0; p < a->n_parts; p++) {
            const struct part *t = &a->part[p];
            double both = zip_length(z, buf_str(b), b->len, t->text, t->n);
            sum += alignment_of(length, t->length, both);
        }
        a->score[c] = sum / a->n_parts;
        progress_add(&a->bar, 1);
    }
}

/* Parts of the target as long as a chunk is, evenly spread; a target that is shorter is one part. */
static int cut_target(struct align *a, const struct texts *target, struct err *e)
{
    size_t total = 0, chunk = 0;
    for (int i = 0; i < target->n; i++)
        total += target->text[i].len;
    for (int c = 0; c < a->chunks && c < PARTS; c++) {
        if (chunk_text(a, (int)((int64_t)c * a->chunks / PARTS) % a->chunks, &a->buf[0]) < 0)
            return err_set(e, ERR_NOMEM, "no memory for the text of a sequence");
        chunk = a->buf[0].len > chunk ? a->buf[0].len : chunk;
    }
    size_t share = total / PARTS > chunk ? total / PARTS : chunk;
    size_t skip = 0; /* of the next text: shares are counted over all of them */
    for (int i = 0; i < target->n; i++) {
        const struct buf *t = &target->text[i];
        size_t at = skip;
        for (; at < t->len && a->n_parts < PARTS; at += share + 1) {
            size_t n = t->len - at < chunk ? t->len - at : chunk;
            if (n < chunk && at > 0)
                break; /* what is left of a text is too short to be compared with */
            a->part[a->n_parts++] =
                (struct part){ buf_str(t) + at, n,
                               zip_length(&a->zip[0], buf_str(t) + at, n, "", 0) };
        }
        skip = at > t->len ? at - t->len : 0;
    }
    return a->n_parts > 0 ? 0 : err_set(e, ERR_INVALID, "align: the text is empty");
}

/* The n highest scores; of equal ones the first. sorted: [chunks] scratch. */
static void pick(const struct align *a, double *sorted, int *chunk, int n)
{
    memcpy(sorted, a->score, (size_t)a->chunks * sizeof *sorted);
    cli_sort(sorted, a->chunks);
    double least = sorted[a->chunks - n];
    int equal = 0;
    for (int i = a->chunks - n; i < a->chunks && sorted[i] == least; i++)
        equal++;
    for (int c = 0, k = 0; c < a->chunks && k < n; c++)
        if (a->score[c] > least || (a->score[c] == least && equal-- > 0))
            chunk[k++] = c;
}

static int open_align(struct align *a, int threads)
{
    a->zip = mem_zalloc((size_t)threads, sizeof *a->zip);
    a->buf = mem_zalloc((size_t)threads, sizeof *a->buf);
    a->score = mem_zalloc((size_t)a->chunks, 2 * sizeof *a->score);
    if (a->zip == NULL || a->buf == NULL || a->score == NULL)
        return ERR_NOMEM;
    for (int i = 0; i < threads; i++) {
        buf_init(&a->buf[i], MAX_STRING);
        TRY(zip_open(&a->zip[i]));
    }
    return 0;
}

static void close_align(struct align *a, int threads)
{
    for (int i = 0; i < threads && a->zip != NULL && a->buf != NULL; i++) {
        (void)deflateEnd(&a->zip[i]); /* one that was not opened is refused */
        buf_free(&a->buf[i]);
    }
    mem_free(a->score);
    mem_free(a->buf);
    mem_free(a->zip);
}

int align_choose(const struct tok_ids *ids, const struct tokenizer *tok, const struct texts *target,
                 int len, int *chunk, int n, struct par *par, struct err *e)
{
    struct align a = { .ids = ids, .tok = tok, .len = len, .chunks = ids->n / len };
    int threads = par_threads(par);
    int rc = open_align(&a, threads);
    if (rc < 0)
        err_set(e, rc, "no memory to compare %d sequences", a.chunks);
    else
        rc = cut_target(&a, target, e);
    if (rc == 0) {
        progress_start(&a.bar, "align", "sequences", (uint64_t)a.chunks);
        par_for(par, a.chunks, 1, score_chunks, &a);
        progress_end(&a.bar, !a.failed && !fetch_cancelled());
        if (a.failed)
            rc = err_set(e, ERR_NOMEM, "no memory for the text of a sequence");
        else if (fetch_cancelled())
            rc = err_set(e, ERR_CANCELLED, "stopped");
        else
            pick(&a, a.score + a.chunks, chunk, n);
    }
    close_align(&a, threads);
    return rc;
}
