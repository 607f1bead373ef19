/* Config files: any bytes are read or refused with a sentence, and nothing is left behind. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "server/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct config c;
    struct err e = { 0 };
    ASSERT(config_parse(&c, CONFIG_SERVE, 0, NULL, &e) == 0);
    if (config_read(&c, CONFIG_SERVE, (const char *)data, size, &e) < 0)
        ASSERT(e.text[0] != 0 && strlen(e.text) < sizeof e.text);
    config_free(&c);
    return 0;
}
