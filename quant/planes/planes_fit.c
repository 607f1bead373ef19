/* The scale and minimum of a group: least squares between ranges.
 *
 * A range, the whole of the numbers or less of it, gives codes; the codes give the best scale and minimum (two linear
 * equations), these give better codes, and so on (Lloyd's iteration for an even grid). It ends in the next local minimum,
 * so it starts from several ranges: with few bits the best range leaves much outside.
 */
#include <float.h>
#include <math.h>

#include "quant/planes/planes.h"

enum { SUMS = 8, STEPS = 3 }; /* partial sums, side by side in registers; improvements of a range */

/* How much of each end of the range is left out, most first. Found on normally distributed numbers in groups of 64; nine
 * ranges improved eight times gain 1 to 3 % of the error at ten times the time (10 to 30 ns a weight, one thread). */
static const struct {
    int n;
    float shrink[3];
} range[PLANES_BITS + 1] = {
    [2] = { 3, { 0.30f, 0.20f, 0.10f } },
    [3] = { 3, { 0.18f, 0.10f, 0.03f } },
    [4] = { 3, { 0.10f, 0.05f, 0 } },
    [5] = { 2, { 0.05f, 0 } },
    [6] = { 2, { 0.02f, 0 } },
    [7] = { 1, { 0 } },
    [8] = { 1, { 0 } },
};

static float sum_of(const float *part)
{
    float s = 0;
    for (int i = 0; i < SUMS; i++)
        s += part[i];
    return s;
}

/* f16 holds no more than 65504, and an infinite scale would make all of a group NaN. */
static float to_f16(float x)
{
    float top = 65504;
    x = x > top ? top : x < -top ? -top : x;
    return f16_to_f32(f32_to_f16(x));
}

/* 0 ... top by the bits, whose order is that of the numbers from 0 on: unlike comparisons of floats this becomes vector
 * code. Anything goes in, NaN included. */
static float clamp(float q, float top)
{
    union {
        float f;
        int32_t bits;
    } u = { q }, t = { top };
    u.bits &= ~(u.bits >> 31);
    u.bits = u.bits < t.bits ? u.bits : t.bits;
    return u.f;
}

/* Codes of x with w = code * d + m, and the weighted error. */
static float codes_for(const float *x, const float *weight, int n, float d, float m, float top,
                       float *code)
{
    float part[SUMS] = { 0 };
    float inv = d > 0 ? 1 / d : 0;
    for (int k = 0; k < n; k += SUMS)
        for (int i = 0; i < SUMS; i++) {
            float c = (float)(int)(clamp((x[k + i] - m) * inv, top) + 0.5f);
            float e = c * d + m - x[k + i];
            code[k + i] = c;
            part[i] += weight[k + i] * (e * e);
        }
    return sum_of(part);
}

/* Weighted least squares for scale and minimum with these codes. */
static void refit(const float *x, const float *weight, int n, const float *code, float *d, float *m)
{
    float part[5][SUMS] = { { 0 } };
    for (int k = 0; k < n; k += SUMS)
        for (int i = 0; i < SUMS; i++) {
            float h = weight[k + i];
            float q = code[k + i];
            part[0][i] += h;
            part[1][i] += h * q;
            part[2][i] += h * (q * q);
            part[3][i] += h * x[k + i];
            part[4][i] += h * (q * x[k + i]);
        }
    float s[5];
    for (int j = 0; j < 5; j++)
        s[j] = sum_of(part[j]);
    float det = s[0] * s[2] - s[1] * s[1];
    float scale = (s[0] * s[4] - s[1] * s[3]) / det;
    if (!(det > 0) || !(scale > 0))
        return;
    *d = scale;
    *m = (s[3] - scale * s[1]) / s[0];
}

/* One bit: the weighted mean of |x|, which is the best scale of signs. */
static struct planes_fit fit_signs(const float *x, const float *weight, int n)
{
    float part[2][SUMS] = { { 0 } };
    for (int k = 0; k < n; k += SUMS)
        for (int i = 0; i < SUMS; i++) {
            part[0][i] += weight[k + i] * fabsf(x[k + i]);
            part[1][i] += weight[k + i];
        }
    float s = to_f16(sum_of(part[0]) / sum_of(part[1]));
    return (struct planes_fit){ 2 * s, -s };
}

struct planes_fit planes_fit(const float *x, const float *weight, int n, int bits)
{
    if (bits == 1)
        return fit_signs(x, weight, n);
    float top = (float)((1 << bits) - 1);
    float lo = x[0];
    float hi = x[0];
    for (int k = 1; k < n; k++) {
        lo = x[k] < lo ? x[k] : lo;
        hi = x[k] > hi ? x[k] : hi;
    }
    float best = FLT_MAX;
    float code[PLANES_GROUP];
    struct planes_fit f = { 0, to_f16(lo) };
    for (int i = 0; i < range[bits].n; i++) {
        float shrink = range[bits].shrink[i] * (hi - lo);
        float m = lo + shrink;
        float d = (hi - lo - 2 * shrink) / top;
        for (int step = 0; step < STEPS; step++) {
            float rd = to_f16(d);
            float middle = (float)planes_middle(bits);
            float rm = to_f16(m + middle * rd);
            float err = codes_for(x, weight, n, rd, rm - middle * rd, top, code);
            if (err < best) {
                best = err;
                f = (struct planes_fit){ rd, rm };
            }
            refit(x, weight, n, code, &d, &m);
        }
    }
    return f;
}

int planes_code(float x, struct planes_fit f, int bits)
{
    float inv = f.d > 0 ? 1 / f.d : 0;
    float top = (float)((1 << bits) - 1);
    return (int)(clamp((x - f.m) * inv + (float)planes_middle(bits), top) + 0.5f);
}
