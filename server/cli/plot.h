/* A line plot as a PNG: some series over a logarithmic axis. Its letters come with libgd: no font is needed. */
#ifndef WRING_SERVER_CLI_PLOT_H
#define WRING_SERVER_CLI_PLOT_H

#include "server/base/err.h"

enum { PLOT_POINTS = 32 };

struct plot_series {
    const char *name;
    double x[PLOT_POINTS], y[PLOT_POINTS]; /* x > 0, rising; y >= 0; NaN: no point */
    int n;
};
struct plot {
    const char *title, *x_title, *y_title;
    const struct plot_series *series;
    int n_series;
};
/* Writes it to path, atomically. ERR_NOMEM, ERR_IO. */
int plot_write(const struct plot *p, const char *path, struct err *e) WARN_UNUSED;

#endif
