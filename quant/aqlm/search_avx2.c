#define AQLM_SCAN aqlm_scan_avx2
#include "quant/aqlm/search_scan.inc"
