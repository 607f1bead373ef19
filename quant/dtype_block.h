/* Decoders of one super-block of 256 elements, each: s points to the block, y gets 256 values. For dtype.c only. */
#ifndef WRING_QUANT_DTYPE_BLOCK_H
#define WRING_QUANT_DTYPE_BLOCK_H

#include <stdint.h>

void block_q2_k(const uint8_t *s, float *y);
void block_q3_k(const uint8_t *s, float *y);
void block_q4_k(const uint8_t *s, float *y);
void block_q5_k(const uint8_t *s, float *y);
void block_q6_k(const uint8_t *s, float *y);
void block_iq2_xxs(const uint8_t *s, float *y);
float dtype_half(const uint8_t *p); /* a little-endian f16 */

#endif
