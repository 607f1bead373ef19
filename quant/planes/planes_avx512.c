#define PLANES_TABLE planes_avx512
#include "quant/planes/planes_kernel.inc"
