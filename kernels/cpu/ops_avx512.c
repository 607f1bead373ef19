/* Row ops with AVX-512. */
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/ops_rows.inc"

void cpu_ops_avx512(struct be_ops *ops)
{
    fill_rows(ops);
}
