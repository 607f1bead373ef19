#include "quant/tiledot_ref.h"
#define TILES_TABLE tiles_ref
#include "tests/tools/tiles.inc"
