#define DENSE_TABLE dense_ref
#include "quant/dense/dense_kernel.inc"
