/* Tables that people compare, and the same as JSON: one object a line.
 *
 * A table is a row of column heads (key for JSON, title for people) and rows of cells; numbers keep their own format.
 * table_print() aligns columns (numbers right, text left, a column of both as its last row). One owner.
 */
#ifndef WRING_BASE_TABLE_H
#define WRING_BASE_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "server/base/buf.h"

struct table_col {
    const char *key;   /* JSON name; NULL: not in JSON */
    const char *title; /* column head; NULL: not shown to people */
};
struct table;

int table_open(struct table **out, const struct table_col *cols, int n_cols) WARN_UNUSED;
void table_close(struct table *t);
/* Cells fill the current row from left to right; a row ends when its last column is filled. A failure to allocate is
 * remembered and reported by table_print. digits: decimals shown. NaN shows as "-" and as null in JSON. Bytes of s that are
 * control characters or no UTF-8 show as "?". */
void table_str(struct table *t, const char *s);
void table_int(struct table *t, int64_t v);
void table_num(struct table *t, double v, int digits);
/* A number of any size with seven digits that count, as 0.5, 1e-05 or 10000. */
void table_real(struct table *t, double v);
/* Appends the table to out: as text, or one JSON object a row. */
int table_print(const struct table *t, bool json, struct buf *out) WARN_UNUSED;

#endif
