/* Where a rendered prompt came from: runs of bytes written by the template, and runs written by the user.
 *
 * A list of segments covers a text without gaps, in order, no two neighbours with the same mark. Special tokens may be
 * recognised in runs with user == false only; plain text is one stream across the borders.
 */
#ifndef WRING_TEXT_SEGMENT_H
#define WRING_TEXT_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>

struct text_segment {
    size_t start, len; /* bytes; len > 0 */
    bool user;
};

#endif
