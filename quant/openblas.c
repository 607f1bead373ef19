/* A row-major upper triangle is LAPACK's column-major lower one. */
#include "quant/openblas.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

enum { ROW_MAJOR = 101, TURNED = 112, UPPER = 121 }; /* of cblas.h */

/* ISO C knows no conversion between pointers to data and to functions; POSIX promises that they have one size. */
static bool load(void *library, const char *name, void *function)
{
    void *at = dlsym(library, name);
    memcpy(function, &at, sizeof at);
    return at != NULL;
}

bool openblas_open(struct openblas *b)
{
    void *library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == NULL)
        return false;
    bool ok = load(library, "cblas_ssyrk", &b->ssyrk) && load(library, "spotrf_", &b->spotrf) &&
              load(library, "strtri_", &b->strtri);
    dlclose(library);
    return ok;
}

void openblas_gram(const struct openblas *b, float *c, const float *a, int k, int n, float scale)
{
    b->ssyrk(ROW_MAJOR, UPPER, TURNED, n, k, scale, a, n, 1, c, n);
}

bool openblas_cholesky(const struct openblas *b, float *a, int n)
{
    int bad = 0;
    b->spotrf("L", &n, a, &n, &bad);
    for (int i = 0; i < n && bad == 0; i++) /* OpenBLAS lets NaN pass */
        bad = !(a[(size_t)i * (size_t)n + (size_t)i] > 0);
    return bad == 0;
}

bool openblas_invert(const struct openblas *b, float *u, int n)
{
    int bad = 0;
    b->strtri("L", "N", &n, u, &n, &bad);
    return bad == 0;
}
