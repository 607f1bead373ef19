#include "server/cli/plot.h"

#include <gd.h>
#include <gdfontg.h>
#include <gdfonts.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "server/base/buf.h"

enum {
    WIDTH = 1000,
    HEIGHT = 560,
    LEFT = 80,
    RIGHT = 300, /* the legend's */
    TOP = 50,
    BOTTOM = 60,
    DOT = 7,
    WHITE = 0xffffff,
    INK = 0x222222,
    GRID = 0xdddddd
};

struct axes {
    gdImagePtr im;
    double x0, x1, y1; /* logarithms to base 2 of the ends of x; y runs from 0 to y1 */
};

static int across(const struct axes *a, double x)
{
    return LEFT + (int)lround((log2(x) - a->x0) / (a->x1 - a->x0) * (WIDTH - LEFT - RIGHT));
}

static int down(const struct axes *a, double y)
{
    return HEIGHT - BOTTOM - (int)lround(y / a->y1 * (HEIGHT - TOP - BOTTOM));
}

/* 1, 2 or 5 times a power of ten, the next one above v. */
static double round_up(double v)
{
    static const double step[] = { 1, 2, 5, 10 };
    double ten = pow(10, floor(log10(v)));
    int i = 0;
    while (i < 3 && step[i] * ten < v)
        i++;
    return step[i] * ten;
}

static void measure(const struct plot *p, struct axes *a)
{
    double y1 = 0;
    double x0 = INFINITY;
    double x1 = 0;
    for (int s = 0; s < p->n_series; s++)
        for (int i = 0; i < p->series[s].n; i++) {
            if (!isfinite(p->series[s].x[i]) || !isfinite(p->series[s].y[i]))
                continue;
            x0 = fmin(x0, p->series[s].x[i]);
            x1 = fmax(x1, p->series[s].x[i]);
            y1 = fmax(y1, p->series[s].y[i]);
        }
    a->x0 = x1 > 0 ? floor(log2(x0)) : 0;
    a->x1 = x1 > 0 ? fmax(ceil(log2(x1)), a->x0 + 1) : 1;
    a->y1 = round_up(y1 > 0 ? y1 : 1);
}

static void write_text(const struct axes *a, gdFontPtr f, int x, int y, const char *s, int colour)
{
    gdImageString(a->im, f, x, y, (unsigned char *)(uintptr_t)s, colour);
}

static void draw_axes(const struct plot *p, const struct axes *a)
{
    char text[32];
    gdFontPtr f = gdFontGetSmall();
    for (int k = (int)a->x0; k <= (int)a->x1; k++) {
        int x = across(a, exp2(k));
        gdImageLine(a->im, x, TOP, x, HEIGHT - BOTTOM, GRID);
        snprintf(text, sizeof text, "%g", exp2(k));
        write_text(a, f, x - (int)strlen(text) * f->w / 2, HEIGHT - BOTTOM + 6, text, INK);
    }
    for (int k = 0; k <= 5; k++) {
        int y = down(a, a->y1 * k / 5);
        gdImageLine(a->im, LEFT, y, WIDTH - RIGHT, y, k == 0 ? INK : GRID);
        snprintf(text, sizeof text, "%g", a->y1 * k / 5);
        write_text(a, f, LEFT - 8 - (int)strlen(text) * f->w, y - f->h / 2, text, INK);
    }
    write_text(a, gdFontGetGiant(), LEFT, 16, p->title, INK);
    int middle = (LEFT + WIDTH - RIGHT) / 2;
    write_text(a, f, middle - (int)strlen(p->x_title) * f->w / 2, HEIGHT - 28, p->x_title, INK);
    gdImageStringUp(a->im, f, 14, HEIGHT / 2 + (int)strlen(p->y_title) * f->w / 2,
                    (unsigned char *)(uintptr_t)p->y_title, INK);
}

/* Twelve hues that can be told apart, then lighter ones. */
static int colour_of(int i)
{
    static const int hue[] = { 0x1f77b4, 0xd62728, 0x2ca02c, 0xff7f0e, 0x9467bd, 0x8c564b,
                               0xe377c2, 0x7f7f7f, 0xbcbd22, 0x17becf, 0x000000, 0x3a5f0b };
    return hue[i % 12];
}

static void draw_series(const struct axes *a, const struct plot_series *s, int i_series)
{
    int colour = colour_of(i_series);
    gdFontPtr f = gdFontGetSmall();
    int was = -1;
    for (int i = 0; i < s->n; i++) {
        if (!isfinite(s->x[i]) || !isfinite(s->y[i]))
            continue;
        int x = across(a, s->x[i]);
        int y = down(a, s->y[i]);
        gdImageSetAntiAliased(a->im, colour);
        if (was >= 0)
            gdImageLine(a->im, across(a, s->x[was]), down(a, s->y[was]), x, y, gdAntiAliased);
        gdImageFilledEllipse(a->im, x, y, DOT, DOT, colour);
        was = i;
    }
    int y = TOP + i_series * (f->h + 5);
    int x = WIDTH - RIGHT + 20;
    gdImageFilledRectangle(a->im, x, y + f->h / 2 - 1, x + 18, y + f->h / 2 + 1, colour);
    gdImageFilledEllipse(a->im, x + 9, y + f->h / 2, DOT, DOT, colour);
    write_text(a, f, x + 26, y, s->name, INK);
}

int plot_write(const struct plot *p, const char *path, struct err *e)
{
    struct axes a = { .im = gdImageCreateTrueColor(WIDTH, HEIGHT) };
    int bytes = 0;
    if (a.im == NULL)
        return err_set(e, ERR_NOMEM, "no memory to draw %s", path);
    gdImageFilledRectangle(a.im, 0, 0, WIDTH, HEIGHT, WHITE);
    measure(p, &a);
    draw_axes(p, &a);
    for (int i = 0; i < p->n_series; i++)
        draw_series(&a, &p->series[i], i);
    void *png = gdImagePngPtr(a.im, &bytes);
    gdImageDestroy(a.im);
    if (png == NULL)
        return err_set(e, ERR_NOMEM, "no memory to write %s", path);
    int rc = file_write_atomic(path, png, (size_t)bytes, e);
    gdFree(png);
    return rc;
}
