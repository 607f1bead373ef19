#define Q4_TABLE q4_avx512
#include "quant/q4/q4_kernel.inc"
