/* The "compression" member of a request. Private to api/. */
#ifndef WRING_API_COMPRESSION_H
#define WRING_API_COMPRESSION_H

#include "api/field.h"

/* Fills *c from at->obj's member "compression", defaults where there is none. Strings are borrowed from the JSON. */
int compression_parse(const struct field_at *at, struct api_compression *c) WARN_UNUSED;

#endif
