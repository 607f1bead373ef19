/* Turning a query on: what it would ask from another position.
 *
 * RoPE (arXiv 2104.09864) rotates pair i of a query at position p by p * inv_freq_i; rotations add up, so a query that was
 * rotated for p is turned to p + delta by delta * inv_freq_i. Angles are doubles: at 8,000 positions a float angle is off by
 * 2e-4.
 */
#include <math.h>

#include "kvcache/policy.h"

void kv_rope_turn(const struct kv_rope *r, float *q, int n, int dim, int delta)
{
    for (int i = 0; i < r->half; i++) {
        double angle = (double)delta * (double)r->inv_freq[i];
        double c = cos(angle), s = sin(angle);
        int a = r->half_split ? i : 2 * i, b = r->half_split ? i + r->half : 2 * i + 1;
        for (float *x = q; x < q + (size_t)n * (size_t)dim; x += dim) {
            double xa = (double)x[a], xb = (double)x[b];
            x[a] = (float)(xa * c - xb * s);
            x[b] = (float)(xa * s + xb * c);
        }
    }
}
