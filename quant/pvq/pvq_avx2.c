#define PVQ_TABLE pvq_avx2
#include "quant/pvq/pvq_kernel.inc"
