/* Products with tiles that lie in memory as they are, for tests of quant/tiledot.h: every kind, offset and base.
 */
#ifndef WRING_TESTS_TOOLS_TILES_H
#define WRING_TESTS_TOOLS_TILES_H

#include "quant/tiledot.h"

/* Of a weight, plane 0 is struct tile [units][groups], plane 1 the f16 scales of rows. */
#define TILES(X)                                                                                   \
    X(row, TILE_ROW, 0, false)                                                                     \
    X(row64, TILE_ROW, 64, false)                                                                  \
    X(row128, TILE_ROW, 128, false)                                                                \
    X(group, TILE_GROUP, 0, false)                                                                 \
    X(group_base, TILE_GROUP, 0, true)                                                             \
    X(group64_base, TILE_GROUP, 64, true)                                                          \
    X(group128_base, TILE_GROUP, 128, true)                                                        \
    X(half, TILE_HALF, 0, false)                                                                   \
    X(half64, TILE_HALF, 64, false)

enum { TILES_N = 10 }; /* these, then a group with a base whose codes are below 32 */

extern const struct codec_cpu tiles_ref[TILES_N], tiles_avx2[TILES_N], tiles_avx512[TILES_N];

#endif
