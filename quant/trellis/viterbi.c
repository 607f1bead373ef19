#include "quant/trellis/viterbi.h"

#include <math.h>
#include <string.h>

/* Steps from one state to all. No two costs are farther apart than these steps cost at most, so that is cut off at this part of
 * 16 bits, and a path that begins in a forbidden state, for the whole of them, never wins. */
static int steps_to_all(int bits)
{
    return 12 / bits - 1;
}

/* ---- one position in plain C ------------------------------------------------------------------------------------- */

static uint16_t cost_of(const struct viterbi *v, struct viterbi_target to, float value)
{
    float d = to.x - value;
    float e = d * d - to.least;
    return (uint16_t)((int)(e < v->far ? e : v->far) & -(1 << v->bits));
}

static uint16_t step_ref(const struct viterbi *v, struct viterbi_target to, uint16_t least,
                         const uint16_t *in, uint16_t *out)
{
    int symbols = 1 << v->bits;
    uint16_t cost[16][16];
    for (int i = 0; i < 256; i++)
        cost[i / 16][i % 16] = cost_of(v, to, v->value[i / 16][i % 16]);
    int best = UINT16_MAX;
    for (int state = 0; state < v->states; state++) {
        int low = UINT16_MAX;
        for (int u = 0; u < symbols; u++) {
            int n2 = viterbi_window(v->bits, state, u) >> 8;
            int before = in[viterbi_before(v->bits, state, u)] & -symbols;
            int sum =
                before - (least & -symbols) + cost[n2][v->index[viterbi_at(v->bits, state, u)]];
            sum = (sum < (UINT16_MAX & -symbols) ? sum : UINT16_MAX & -symbols) | u;
            low = sum < low ? sum : low;
        }
        out[state] = (uint16_t)low;
        best = low < best ? low : best;
    }
    return (uint16_t)best;
}

/* ---- a stream ---------------------------------------------------------------------------------------------------- */

static void make_index(struct viterbi *v, const uint8_t q[16], const uint8_t r[16])
{
    for (int state = 0; state < v->states; state++)
        for (int u = 0; u < 1 << v->bits; u++) {
            int w = viterbi_window(v->bits, state, u);
            v->index[viterbi_at(v->bits, state, u)] =
                (uint8_t)((w & 15) ^ q[w >> 4 & 15] ^ r[w >> 8]);
        }
}

/* How far from a number costs go on growing, in standard deviations squared: with as few steps as there are at 4 bits a
 * little is enough, and costs become finer. */
static float reach(int bits)
{
    return bits == 2 ? 6 : bits == 3 ? 3 : 1.5f;
}

void viterbi_open(struct viterbi *v, int bits, const uint8_t q[16], const uint8_t r[16],
                  const float value[256], enum cpu_isa isa)
{
    static viterbi_step_fn *const fast[] = { viterbi_step_2_avx2, viterbi_step_3_avx2,
                                             viterbi_step_4_avx2 };
    v->bits = bits;
    v->states = 1 << (12 - bits);
    v->step = isa >= CPU_AVX2 ? fast[bits - 2] : step_ref;
    double square = 0;
    for (int i = 0; i < 256; i++)
        square += (double)value[i] * value[i];
    v->far = (float)(UINT16_MAX / steps_to_all(bits));
    v->gain = sqrtf(v->far / (reach(bits) * (float)(square / 256)));
    v->lo = v->hi = value[0] * v->gain;
    for (int i = 0; i < 256; i++) {
        float a = value[i] * v->gain;
        v->value[i / 16][i % 16] = a;
        v->lo = a < v->lo ? a : v->lo;
        v->hi = a > v->hi ? a : v->hi;
    }
    make_index(v, q, r);
}

static struct viterbi_target target(const struct viterbi *v, float x)
{
    float room = 4 * (v->hi - v->lo);
    x *= v->gain;
    x = x > v->lo - room ? x < v->hi + room ? x : v->hi + room : v->lo - room;
    float off = x > v->hi ? x - v->hi : x < v->lo ? v->lo - x : 0;
    return (struct viterbi_target){ x, off * off };
}

/* Steps over x[first], ..., n of them, circular in a stream of length `all`. start: the state before, or -1 for any. */
static void pass(struct viterbi *v, const float *x, int all, int first, int n, int start)
{
    uint16_t least = 0;
    for (int i = 0; i < v->states; i++)
        v->path[0][i] = start < 0 || i == start ? 0 : UINT16_MAX;
    for (int t = 0; t < n; t++)
        least = v->step(v, target(v, x[(first + t) % all]), least, v->path[t], v->path[t + 1]);
}

static int symbol_at(const struct viterbi *v, int t, int state)
{
    return v->path[t + 1][state] & ((1 << v->bits) - 1);
}

/* The state before position t on the best path that ends in state after n steps. */
static int trace(const struct viterbi *v, int n, int t, int state)
{
    while (n-- > t)
        state = viterbi_before(v->bits, state, symbol_at(v, n, state));
    return state;
}

static int best_state(const struct viterbi *v, int n)
{
    int best = 0;
    for (int i = 1; i < v->states; i++)
        if (v->path[n][i] < v->path[n][best])
            best = i;
    return best;
}

/* First 64 positions before and 64 behind the seam with free ends, around short streams several times: in the middle such a path
 * is the best one, circular or not, and what it passes there is where the second pass begins and ends. With 32 positions on
 * either side a quarter of the time is saved, and the error at 2 bits is 1.3 % more. */
void viterbi_run(struct viterbi *v, const float *x, int n, uint8_t *symbol)
{
    int half = VITERBI_LENGTH / 2;
    pass(v, x, n, n - half % n, 2 * half, -1);
    int seam = trace(v, 2 * half, half, best_state(v, 2 * half));
    pass(v, x, n, 0, n, seam);
    for (int t = n - 1, state = seam; t >= 0; t--) {
        symbol[t] = (uint8_t)symbol_at(v, t, state);
        state = viterbi_before(v->bits, state, symbol[t]);
    }
}
