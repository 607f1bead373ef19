#define Q4_TABLE q4_avx2
#include "quant/q4/q4_kernel.inc"
