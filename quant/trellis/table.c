/* The tables of the trellis codec: part of the format. Made by tests/bench/train_trellis.c on normal numbers. Their mean squared
 * error there: 0.0742, 0.0192 and 0.0054 of the variance.
 */
#include "quant/trellis/trellis.h"

const struct trellis_table trellis_table[TRELLIS_MOST - TRELLIS_LEAST + 1] = {
#include "quant/trellis/table.inc"
};
