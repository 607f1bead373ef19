#include "server/text/json_file.h"

#include <string.h>

int json_file_parse(json_t **out, const char *name, const struct buf *text, struct err *e)
{
    json_error_t why;
    *out = json_loadb(buf_str(text), text->len, JSON_REJECT_DUPLICATES, &why);
    /* transformers writes int(1e30) as "model_max_length" where a tokenizer has no limit. */
    if (*out == NULL && json_error_code(&why) == json_error_numeric_overflow &&
        strcmp(name, "tokenizer_config.json") == 0)
        *out = json_loadb(buf_str(text), text->len,
                          JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &why);
    if (*out == NULL)
        return err_set(e, ERR_FORMAT, "%s:%d: not JSON: %s", name, why.line, why.text);
    return 0;
}
