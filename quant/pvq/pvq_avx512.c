#define PVQ_TABLE pvq_avx512
#include "quant/pvq/pvq_kernel.inc"
