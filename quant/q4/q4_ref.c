#define Q4_TABLE q4_ref
#include "quant/q4/q4_kernel.inc"
