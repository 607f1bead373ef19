/* Row ops with AVX2. */
#include "kernels/cpu/vec_avx2.h"

#include "kernels/cpu/ops_rows.inc"

void cpu_ops_avx2(struct be_ops *ops)
{
    fill_rows(ops);
}
