/* The tables of the trellis codec: part of the format. Made by tests/bench/train_trellis.c on normal numbers. Their mean squared
 * error there: 0.0742, 0.0192 and 0.0054 of the variance.
 */
#include "quant/trellis/trellis.h"

/* clang-format off */
const struct trellis_table trellis_table[TRELLIS_MOST - TRELLIS_LEAST + 1] = {
    { /* 2 bits, seed 94 */
        .step = 0.03360f,
        .q = { 5, 9, 14, 10, 8, 6, 7, 0, 4, 12, 1, 3, 11, 13, 2, 15 },
        .r = { 10, 2, 3, 7, 6, 11, 15, 13, 9, 4, 14, 8, 12, 5, 0, 1 },
        .s = { 85, 105, 51, 1, 63, 39, 127, 83, 47, 22, 79, 66, 98, 71, 31, 56 },
        .m = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 },
    },
    { /* 3 bits, seed 22 */
        .step = 0.04908f,
        .q = { 13, 0, 4, 7, 3, 11, 6, 10, 5, 2, 15, 9, 8, 1, 14, 12 },
        .r = { 5, 3, 13, 12, 6, 14, 8, 4, 7, 10, 9, 0, 11, 15, 1, 2 },
        .s = { 13, 47, 32, 56, 1, 50, 18, 29, 30, 44, 21, 38, 41, 68, 25, 35 },
        .m = { 0, 22, 59, 18, 27, 29, 31, 35, 41, 34, 14, 50, 24, 9, 38, 46 },
    },
    { /* 4 bits, seed 47 */
        .step = 0.04859f,
        .q = { 1, 12, 9, 8, 5, 6, 11, 13, 15, 10, 0, 3, 2, 14, 4, 7 },
        .r = { 1, 3, 0, 11, 12, 8, 7, 14, 13, 10, 15, 9, 4, 6, 2, 5 },
        .s = { 1, 38, 35, 20, 30, 16, 41, 53, 47, 11, 44, 33, 23, 63, 28, 26 },
        .m = { 47, 20, 64, 52, 13, 26, 31, 44, 18, 33, 29, 24, 0, 41, 35, 38 },
    },
};
/* clang-format on */
