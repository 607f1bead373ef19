#define Q8_TABLE q8_avx512
#include "quant/q8/q8_kernel.inc"
