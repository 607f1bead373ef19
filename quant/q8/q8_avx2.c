#define Q8_TABLE q8_avx2
#include "quant/q8/q8_kernel.inc"
