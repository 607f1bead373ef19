#define DENSE_TABLE dense_avx512
#include "quant/dense/dense_kernel.inc"
