/* GPT-2's alphabet, in which byte-level vocabularies are written: printable Latin-1 stands for itself, the other bytes for
 * U+0100 and up, in order. Source: GPT-2's encoder.py. */
#include <string.h>

#include "server/text/token_internal.h"

static bool prints_itself(int b)
{
    return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
}

void alphabet_bytes(int16_t byte_of[ALPHABET])
{
    int next = 256;
    memset(byte_of, -1, ALPHABET * sizeof *byte_of);
    for (int b = 0; b < 256; b++)
        byte_of[prints_itself(b) ? b : next++] = (int16_t)b;
}

bool alphabet_read(const int16_t byte_of[ALPHABET], const char *s, size_t n, char *out, size_t *len)
{
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned c = (unsigned char)s[i];
        if (c >= 0xC2 && c <= 0xC7 && i + 1 < n && ((unsigned char)s[i + 1] & 0xC0) == 0x80)
            c = (c & 31) << 6 | ((unsigned char)s[++i] & 63);
        else if (c >= 0x80)
            return false;
        if (byte_of[c] < 0)
            return false;
        out[at++] = (char)byte_of[c];
    }
    *len = at;
    return true;
}

int alphabet_add(const char *s, size_t n, struct buf *out)
{
    for (size_t i = 0; i < n; i++) {
        int b = (unsigned char)s[i];
        int c = b;
        if (!prints_itself(b)) /* 33 such bytes stand below '!', 34 from 0x7F to 0xA0, and 0xAD */
            c = 256 + (b < '!' ? b : b == 0xAD ? 67 : b - 0x7F + 33);
        if (c >= 0x80)
            (void)buf_addc(out, (char)(0xC0 | c >> 6));
        (void)buf_addc(out, (char)(c < 0x80 ? c : 0x80 | (c & 63)));
    }
    return out->bad;
}
