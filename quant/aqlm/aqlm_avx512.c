#define AQLM_TABLE aqlm_avx512
#include "quant/aqlm/aqlm_kernel.inc"
