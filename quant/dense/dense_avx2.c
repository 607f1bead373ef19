#define DENSE_TABLE dense_avx2
#include "quant/dense/dense_kernel.inc"
