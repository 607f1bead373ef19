#include "tests/tools/models.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "server/config.h"

bool model_path(const char *name, char *out, size_t size)
{
    char home[4096];
    const char *folder = getenv("WRING_MODELS");
    if (folder != NULL)
        snprintf(out, size, "%s/%s", folder, name);
    else if (config_data_home(home, sizeof home, NULL) == 0)
        snprintf(out, size, "%s/wring/models/%s", home, name);
    else
        return false;
    return access(out, R_OK) == 0;
}
