#define AQLM_SCAN aqlm_scan_avx512
#include "quant/aqlm/search_scan.inc"
