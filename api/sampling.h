/* The sampling fields, shared by chat and completions. Private to api/. */
#ifndef WRING_API_SAMPLING_H
#define WRING_API_SAMPLING_H

#include "api/field.h"

/* Fills *s from the members of at->obj; arrays are in the arena, strings borrowed from the JSON. */
int sampling_parse(const struct field_at *at, enum api_kind kind, const struct api_limits *lim,
                   struct arena *arena, struct api_sampling *s) WARN_UNUSED;

#endif
