/* Chat messages and tools: checked, and brought into the one form that templates are written for. Private to api/. */
#ifndef WRING_API_MESSAGE_H
#define WRING_API_MESSAGE_H

#include "api/field.h"

/* Checks at->obj.messages and normalises it in place (see request.h); *out is borrowed. */
int message_parse_all(const struct field_at *at, json_t **out) WARN_UNUSED;
/* tools and tool_choice; *out is NULL when there are none or the choice is "none". */
int message_parse_tools(const struct field_at *at, json_t **out) WARN_UNUSED;

#endif
