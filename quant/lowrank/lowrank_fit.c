/* The best a b of a rank, which the singular value decomposition of x has (Eckart and Young), by subspace iteration: the left
 * singular vectors of x are the eigenvectors of x x^T, and with a whose columns are orthonormal the best b is a^T x.
 *
 * What is best by itself is not best before error feedback. The decomposition in the metric of the inputs' moments H, of x L with
 * H = L L^T (SVD-LLM, arXiv 2403.07378), leaves 1 to 9 % more tr(E H E^T) in every kind of matrix of stories15M
 * (lowrank16+planes2g32), and KL 0.421 against 0.408 (lowrank16+trellis2): feedback keeps errors out of the strong directions of
 * H anyway, and what it cannot avoid grows with the norm of what is left to press.
 *
 * Rows count by the root of their Fisher information (FWSVD, arXiv 2207.00112), if x comes times that (weight_plan()): KL of
 * SmolLM2-135M .771 instead of .821 with lowrank16+trellis2, 1.256 instead of 1.380 with lowrank16+planes2g32; of stories15M .395
 * instead of .409, .213 instead of .220 (lowrank64+trellis2), but .553 instead of .549 with planes, each +- .01. The fourth root
 * gave .772 and .396 with lowrank16+trellis2: no other result.
 */
#include "quant/lowrank/lowrank.h"

#include <math.h>

#include "kernels/dense.h"

enum { STEPS = 12 };

/* Signs that look like chance: a start that is orthogonal to nothing in particular. */
static void start(float *a, int rank, int rows)
{
    uint64_t z = 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < (size_t)rank * (size_t)rows; i++) {
        z = z * 6364136223846793005u + 1442695040888963407u;
        a[i] = z >> 63 ? 1 : -1;
    }
}

static double dot(const float *x, const float *y, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)x[i] * (double)y[i];
    return sum;
}

/* Gram and Schmidt, each row twice for the sake of rounding. A row that depends on those before it becomes zero. */
static void orthonormalise(float *a, int rank, int rows)
{
    for (int k = 0; k < rank; k++) {
        float *x = a + (size_t)k * (size_t)rows;
        double before = dot(x, x, rows);
        for (int pass = 0; pass < 2; pass++)
            for (int i = 0; i < k; i++) {
                const float *y = a + (size_t)i * (size_t)rows;
                float along = (float)dot(x, y, rows);
                for (int j = 0; j < rows; j++)
                    x[j] -= along * y[j];
            }
        double left = dot(x, x, rows);
        float scale = left > 1e-10 * before ? (float)(1 / sqrt(left)) : 0;
        for (int j = 0; j < rows; j++)
            x[j] *= scale;
    }
}

/* b[rank][cols] = a[rank][rows] x[rows][cols] */
static void project(enum cpu_isa isa, const float *x, int rows, int cols, int rank, const float *a,
                    float *b)
{
    struct dense_product t = {
        .c = b, .a = a, .b = x, .m = rank, .n = cols, .k = rows, .scale = 1
    };
    t.a_row = (size_t)rows;
    t.a_col = t.b_col = 1;
    t.b_row = t.c_row = (size_t)cols;
    dense_product(isa, &t);
}

void lowrank_fit(enum cpu_isa isa, const float *x, int rows, int cols, int rank, float *a, float *b)
{
    start(a, rank, rows);
    for (int step = 0; step < STEPS; step++) {
        project(isa, x, rows, cols, rank, a, b);
        dense_nt(isa, a, b, x, rank, rows, cols, 1);
        orthonormalise(a, rank, rows);
    }
    project(isa, x, rows, cols, rank, a, b);
}
