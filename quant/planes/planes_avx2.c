#define PLANES_TABLE planes_avx2
#include "quant/planes/planes_kernel.inc"
