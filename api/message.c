/* Chat messages. See message.h. */
#include "api/message.h"

#include <stdio.h>
#include <string.h>

static int no_memory(struct api_error *e)
{
    return api_error_internal(e, "The server ran out of memory.");
}

/* [{"type": "text", "text": "a"}, ...] as one string. Templates of text models concatenate content with strings. */
static int join_parts(const struct field_at *at, const json_t *parts, json_t **out)
{
    struct buf text;
    int rc = 0;

    buf_init(&text, (size_t)1 << 30);
    for (size_t i = 0; i < json_array_size(parts) && rc == 0; i++) {
        char path[64];
        struct api_str type = { 0 }, s = { 0 };
        snprintf(path, sizeof(path), "%s.content[%zu]", at->path, i);
        struct field_at in = { json_array_get(parts, i), path, at->err };
        if (!json_is_object(in.obj)) {
            rc = field_bad(&in, "", "expected an object, but got %s.", field_type(in.obj));
            break;
        }
        if ((rc = field_str(&in, "type", &type)) < 0)
            break;
        if (!type.p || (strcmp(type.p, "text") != 0 && strcmp(type.p, "refusal") != 0)) {
            rc = field_bad(&in, "type", "only 'text' parts are supported by this model.");
            break;
        }
        if ((rc = field_str(&in, type.p, &s)) < 0)
            break;
        if (!s.p)
            rc = field_bad(&in, type.p, "a string is required.");
        else {
            if (i > 0)
                (void)buf_addc(&text, '\n');
            (void)buf_add(&text, s.p, s.n);
        }
    }
    if (rc == 0) {
        *out = text.bad ? NULL : json_stringn(buf_str(&text), text.len);
        rc = *out ? 0 : no_memory(at->err);
    }
    buf_free(&text);
    return rc;
}

/* The object that a call's arguments spell, {} where they are blank, as of functions that take none; what spells no object
 * stays. */
static int spell_arguments(const struct field_at *in, json_t *fn)
{
    struct api_error ignored;
    struct api_str args = { 0 };
    json_t *spelled = NULL;
    TRY(field_str(in, "arguments", &args));
    if (!args.p || strspn(args.p, " \t\r\n") == args.n)
        spelled = json_object();
    else if (field_root(&spelled, args.p, args.n, &ignored) < 0)
        return 0;
    return json_object_set_new(fn, "arguments", spelled) < 0 ? no_memory(in->err) : 0;
}

/* {"id", "type": "function", "function": {"name", "arguments"}}. Templates iterate over arguments, so the string that
 * the API carries becomes the object that it spells. */
static int parse_call(const struct field_at *at, json_t *call)
{
    json_t *fn = NULL;
    struct api_str id = { 0 }, name = { 0 };

    if (!json_is_object(call))
        return field_bad(at, "", "expected an object, but got %s.", field_type(call));
    TRY(field_str(at, "id", &id));
    TRY(field_object(at, "function", &fn));
    if (!fn)
        return field_bad(at, "function", "an object is required.");
    char path[96];
    snprintf(path, sizeof(path), "%s.function", at->path);
    struct field_at in = { fn, path, at->err };
    TRY(field_str(&in, "name", &name));
    if (!name.p)
        return field_bad(&in, "name", "a string is required.");
    if (json_is_object(json_object_get(fn, "arguments")))
        return 0;
    return spell_arguments(&in, fn);
}

static int parse_calls(const struct field_at *at, bool *any)
{
    json_t *calls = NULL;

    TRY(field_array(at, "tool_calls", API_MAX_TOOLS, &calls));
    for (size_t i = 0; i < json_array_size(calls); i++) {
        char path[64];
        snprintf(path, sizeof(path), "%s.tool_calls[%zu]", at->path, i);
        json_t *call = json_array_get(calls, i);
        struct field_at in = { call, path, at->err };
        TRY(parse_call(&in, call));
    }
    *any = json_array_size(calls) > 0;
    return 0;
}

static int check_role(const struct field_at *at, json_t *msg, const char **role)
{
    static const char *const known[] = { "system",    "developer", "user",
                                         "assistant", "tool",      "function" };
    struct api_str s = { 0 };

    TRY(field_str(at, "role", &s));
    if (!s.p)
        return field_bad(at, "role", "a string is required.");
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(s.p, known[i]) == 0) {
            *role = known[i];
            if (i == 1 && json_object_set_new(msg, "role", json_string("system")) < 0)
                return no_memory(at->err);
            return 0;
        }
    return field_bad(at, "role",
                     "'%.40s' is not one of 'system', 'developer', 'user', 'assistant', 'tool', "
                     "and 'function'.",
                     s.p);
}

/* What says nothing goes: SDKs send null for all that an answer did not have, and templates ask whether tool_calls is
 * there. */
static void drop_empty(json_t *msg, bool calls)
{
    const char *key;
    json_t *v;
    void *next;
    json_object_foreach_safe(msg, next, key, v)
    {
        if (json_is_null(v) || (!calls && strcmp(key, "tool_calls") == 0))
            json_object_del(msg, key);
    }
}

static int parse_message(const struct field_at *at, json_t *msg)
{
    const char *role = NULL;
    struct api_str s = { 0 };
    bool calls = false;

    if (!json_is_object(msg))
        return field_bad(at, "", "expected an object, but got %s.", field_type(msg));
    TRY(check_role(at, msg, &role));
    TRY(field_str(at, "name", &s));
    TRY(field_str(at, "tool_call_id", &s));
    TRY(parse_calls(at, &calls));
    drop_empty(msg, calls);
    json_t *content = field_get(at, "content");
    if (json_is_string(content))
        return 0;
    if (!content) {
        /* An assistant that only called a tool, or refused, has no content. */
        if (strcmp(role, "assistant") != 0 ||
            (!calls && !field_get(at, "refusal") && !field_get(at, "function_call")))
            return field_bad(at, "content", "a string or an array of text parts is required.");
        content = json_string("");
    } else if (json_is_array(content)) {
        TRY(join_parts(at, content, &content));
    } else {
        return field_bad(at, "content", "expected a string or an array of parts, but got %s.",
                         field_type(content));
    }
    return json_object_set_new(msg, "content", content) < 0 ? no_memory(at->err) : 0;
}

int message_parse_all(const struct field_at *at, json_t **out)
{
    json_t *all = NULL;

    TRY(field_array(at, "messages", API_MAX_MESSAGES, &all));
    if (!all)
        return field_bad(at, "messages", "an array of messages is required.");
    if (json_array_size(all) == 0)
        return field_bad(at, "messages",
                         "array too short. Expected at least 1 item, but got 0 items.");
    for (size_t i = 0; i < json_array_size(all); i++) {
        char path[32];
        snprintf(path, sizeof(path), "messages[%zu]", i);
        json_t *msg = json_array_get(all, i);
        struct field_at in = { msg, path, at->err };
        TRY(parse_message(&in, msg));
    }
    *out = all;
    return 0;
}

static int check_tool(const struct field_at *at)
{
    struct api_str type = { 0 }, name = { 0 };
    json_t *fn = NULL, *params = NULL;

    if (!json_is_object(at->obj))
        return field_bad(at, "", "expected an object, but got %s.", field_type(at->obj));
    TRY(field_str(at, "type", &type));
    if (!type.p || strcmp(type.p, "function") != 0)
        return field_bad(at, "type", "only 'function' tools are supported.");
    TRY(field_object(at, "function", &fn));
    if (!fn)
        return field_bad(at, "function", "an object is required.");
    char path[48];
    snprintf(path, sizeof(path), "%s.function", at->path);
    struct field_at in = { fn, path, at->err };
    TRY(field_str(&in, "name", &name));
    if (!name.p || name.n == 0)
        return field_bad(&in, "name", "a string is required.");
    return field_object(&in, "parameters", &params);
}

int message_parse_tools(const struct field_at *at, json_t **out)
{
    json_t *tools = NULL;
    const json_t *choice = field_get(at, "tool_choice");

    TRY(field_array(at, "tools", API_MAX_TOOLS, &tools));
    for (size_t i = 0; i < json_array_size(tools); i++) {
        char path[32];
        snprintf(path, sizeof(path), "tools[%zu]", i);
        struct field_at in = { json_array_get(tools, i), path, at->err };
        TRY(check_tool(&in));
    }
    if (choice && !json_is_string(choice) && !json_is_object(choice))
        return field_bad(at, "tool_choice", "expected a string or an object, but got %s.",
                         field_type(choice));
    const char *word = json_string_value(choice);
    if (json_is_object(choice) || (word && strcmp(word, "required") == 0))
        return api_error_code(at->err, "unsupported_value", "tool_choice",
                              "Unsupported value: 'tool_choice' must be 'none' or 'auto'; a call "
                              "cannot be enforced by this server.");
    if (word && strcmp(word, "none") != 0 && strcmp(word, "auto") != 0)
        return field_bad(at, "tool_choice", "'%.40s' is not one of 'none' and 'auto'.", word);
    *out = json_array_size(tools) > 0 && !(word && strcmp(word, "none") == 0) ? tools : NULL;
    return 0;
}
