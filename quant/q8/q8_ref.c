#define Q8_TABLE q8_ref
#include "quant/q8/q8_kernel.inc"
