#define TRELLIS_CPU  trellis_avx2
#define TRELLIS_FILL trellis_fill_avx2
#include "quant/trellis/trellis_kernel.inc"
