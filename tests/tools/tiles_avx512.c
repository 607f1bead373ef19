#include "quant/tiledot_kernel.h"
#define TILES_TABLE tiles_avx512
#include "tests/tools/tiles.inc"
