#define AQLM_TABLE aqlm_avx2
#include "quant/aqlm/aqlm_kernel.inc"
