#define TRELLIS_CPU  trellis_avx512
#define TRELLIS_FILL trellis_fill_avx512
#include "quant/trellis/trellis_kernel.inc"
