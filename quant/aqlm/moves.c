/* Moves of aqlm's codes: a group of inputs offers the best other entry of one of its codebooks. */
#include "quant/aqlm/aqlm.h"

static int count_moves(const struct weight *w)
{
    return w->cols / aqlm_shape(w->variant).group;
}

/* The codes of a row in one codebook. */
struct line {
    const struct weight *w;
    struct aqlm_shape s;
    int row, book;
    float *u;     /* [cols] the entries' numbers */
    float *a, *b; /* [cols] what a change d of them costs: a d + b d^2 */
};

static const uint16_t *entry_of(const struct line *l, size_t code)
{
    return aqlm_books(l->w) + (((size_t)l->book << l->s.bits) + code) * (size_t)l->s.group;
}

static size_t code_of(const struct line *l, int j)
{
    return aqlm_entry(aqlm_codes(l->w, l->s, l->row / CODEC_PANEL, j, l->book), l->s,
                      l->row % CODEC_PANEL, 0);
}

static void lay_out(const struct line *l, const float *grad, const float *curve)
{
    float scale = f16_to_f32(aqlm_scales(l->w)[l->row]);
    int group = l->s.group;
    for (int k = 0; k < l->w->cols; k++) {
        l->u[k] = f16_to_f32(entry_of(l, code_of(l, k / group))[k % group]);
        l->a[k] = grad[k] * scale;
        l->b[k] = .5f * curve[k] * scale * scale;
    }
}

/* What group j gains by an entry v. */
static float gain_of(const struct line *l, int j, const float *v)
{
    float cost = 0;
    for (int t = 0, k = j * l->s.group; t < l->s.group; t++, k++) {
        float d = v[t] - l->u[k];
        cost += d * (l->a[k] + l->b[k] * d);
    }
    return -cost;
}

/* An entry is unpacked once for all groups. */
static void find_line(const struct line *l, struct codec_move *out)
{
    int n = count_moves(l->w);
    for (int code = 0; code < 1 << l->s.bits; code++) {
        const uint16_t *entry = entry_of(l, (size_t)code);
        float v[AQLM_GROUP_MAX];
        for (int t = 0; t < l->s.group; t++)
            v[t] = f16_to_f32(entry[t]);
        for (int j = 0; j < n; j++) {
            float gain = gain_of(l, j, v);
            if (gain > out[j].gain)
                out[j] = (struct codec_move){ gain, j * l->s.books + l->book, code };
        }
    }
}

static void find_moves(const struct weight *w, int row, const float *grad, const float *curve,
                       float *room, struct codec_move *out)
{
    size_t cols = (size_t)w->cols;
    struct line l = { w, aqlm_shape(w->variant), row, 0, room, room + cols, room + 2 * cols };
    for (int j = 0; j < count_moves(w); j++)
        out[j] = (struct codec_move){ 0 };
    for (; l.book < l.s.books; l.book++) {
        lay_out(&l, grad, curve);
        find_line(&l, out);
    }
}

static int make_move(struct weight *w, int row, int at, int to)
{
    struct aqlm_shape s = aqlm_shape(w->variant);
    uint8_t *code =
        (uint8_t *)w->plane[0] + (aqlm_codes(w, s, row / CODEC_PANEL, at / s.books, at % s.books) -
                                  (const uint8_t *)w->plane[0]);
    int was = (int)aqlm_entry(code, s, row % CODEC_PANEL, 0);
    if (s.bits <= 8)
        code[row % CODEC_PANEL] = (uint8_t)to;
    else
        ((uint16_t *)(void *)code)[row % CODEC_PANEL] = (uint16_t)to;
    return was;
}

const struct codec_moves aqlm_moves = { count_moves, find_moves, make_move };
