/* Splitting a budget: a policy of splitting says what each head wishes, and one function makes whole numbers of wishes.
 *
 *   pyramid  PyramidKV (arXiv 2406.02069): with a mean of R slots beside the protected ones, layer l of L wishes
 *            max - (max - min) l / (L - 1), min = R / 20, max = 2 R - min.
 *   ada      Ada-KV (arXiv 2407.11550), layer by layer: of the H R best of all H heads' scores, each normalised to sum 1, a head
 *            has c; it wishes 0.8 c + 0.2 R.
 *   mass     EMS's reading of "adaptive", over all layers: a head wishes the count of its best slots that hold 98 % of its
 *            score. A head whose attention is wide needs many slots, a narrow one few.
 *
 * Scores below 0 (a policy may have such) are lifted by their head's least before they are summed.
 */
#include <math.h>
#include <string.h>

#include "kvcache/score.h"
#include "kvcache/split.h"

static const double PYRAMID_BETA = 20, ADA_FLOOR = 0.2, MASS_SHARE = 0.98;

/* The scale at which the wishes, none over `most`, add up to total. Every round but the last fills a head up. */
static double find_scale(const double *wish, int n, double total, double most)
{
    double scale = 0;
    for (int round = 0; round <= n; round++) {
        double rest = total, open = 0;
        for (int i = 0; i < n; i++) {
            if (wish[i] * scale >= most)
                rest -= most;
            else
                open += wish[i];
        }
        if (!(open > 0 && rest / open > scale))
            break;
        scale = rest / open;
    }
    return scale;
}

/* budget[n] = whole numbers in proportion to the wishes, none over `most`, `total` in all (at most n * most). What rounding leaves
 * goes out one by one, from the first. */
static void apportion(const double *wish, int n, int64_t total, int most, int *budget)
{
    double scale = find_scale(wish, n, (double)total, most);
    int64_t left = total;
    for (int i = 0; i < n; i++) {
        budget[i] = (int)fmin(wish[i] * scale + 1e-6, most); /* 1e-6: a whole number stays one */
        left -= budget[i];
    }
    for (int i = 0; left > 0; i = (i + 1) % n) {
        left -= budget[i] < most;
        budget[i] += budget[i] < most;
    }
}

/* w[n] = a head's scores as parts of 1, protected ones -inf, no number 0. */
static void normalise(const float *score, int n, float *w)
{
    float least = 0;
    for (int j = 0; j < n; j++)
        least = isfinite(score[j]) && score[j] < least ? score[j] : least;
    double sum = 0;
    for (int j = 0; j < n; j++) {
        w[j] = score[j] == INFINITY ? -INFINITY : !isfinite(score[j]) ? 0 : score[j] - least;
        sum += w[j] > 0 ? (double)w[j] : 0;
    }
    for (int j = 0; j < n; j++)
        w[j] = sum > 0 ? (float)((double)w[j] / sum) : w[j];
}

static void split_pyramid(const struct kv_split_in *in, double *wish)
{
    double mean = in->budget - in->n_protected, least = mean / PYRAMID_BETA;
    double step = in->n_layers > 1 ? 2 * (mean - least) / (in->n_layers - 1) : 0;
    for (int i = 0; i < in->n_layers * in->n_kv_heads; i++) {
        int layer = i / in->n_kv_heads;
        wish[i] = in->n_layers > 1 ? 2 * mean - least - step * layer : mean;
    }
}

/* One layer's wishes. w, all: [n_kv_heads * n]; a tie goes to the later position, then to the later head. */
static void split_ada(const struct kv_split_in *in, int layer, double *wish, float *all, float *w,
                      int32_t *order)
{
    int n_heads = in->n_kv_heads, mean = in->budget - in->n_protected;
    for (int h = 0; h < n_heads; h++) {
        normalise(in->score[layer * n_heads + h], in->n, w);
        for (int j = 0; j < in->n; j++)
            all[(size_t)j * (size_t)n_heads + (size_t)h] = w[j];
        wish[h] = ADA_FLOOR * mean;
    }
    int n = n_heads * in->n;
    kv_order(all, n, order, order + n);
    for (int i = 0; i < n_heads * mean; i++)
        wish[order[i] % n_heads] += 1 - ADA_FLOOR;
}

/* Of one head. */
static double count_mass(const struct kv_split_in *in, const float *score, float *w, int32_t *order)
{
    normalise(score, in->n, w);
    kv_order(w, in->n, order, order + in->n);
    int n = in->n - in->n_protected, count = 0;
    double total = 0, sum = 0;
    for (int i = 0; i < n; i++)
        total += (double)w[order[i]];
    while (count < n && (count == 0 || sum < MASS_SHARE * total))
        sum += (double)w[order[count++]];
    return count;
}

int kv_split_budget(const struct kv_split_in *in, int *budget, struct arena *a)
{
    int n_heads = in->n_kv_heads, n_all = in->n_layers * n_heads;
    int mean = in->budget - in->n_protected, most = in->n - in->n_protected;
    if (in->split == KV_SPLIT_UNIFORM || mean == 0 || mean == most) {
        for (int i = 0; i < n_all; i++)
            budget[i] = in->budget;
        return 0;
    }
    size_t n = (size_t)in->n * (in->split == KV_SPLIT_ADA ? (size_t)n_heads : 1);
    double *wish = arena_alloc(a, (size_t)n_all * sizeof *wish);
    float *all = arena_alloc(a, n * sizeof *all), *w = arena_alloc(a, (size_t)in->n * sizeof *w);
    int32_t *order = arena_alloc(a, 2 * n * sizeof *order);
    if (wish == NULL || all == NULL || w == NULL || order == NULL)
        return ERR_NOMEM;
    if (in->split == KV_SPLIT_ADA) {
        for (int l = 0; l < in->n_layers; l++) {
            split_ada(in, l, wish, all, w, order);
            apportion(wish, n_heads, (int64_t)n_heads * mean, most, budget + l * n_heads);
        }
    } else {
        if (in->split == KV_SPLIT_PYRAMID)
            split_pyramid(in, wish);
        for (int i = 0; i < n_all && in->split == KV_SPLIT_MASS; i++)
            wish[i] = count_mass(in, in->score[i], w, order);
        apportion(wish, n_all, (int64_t)n_all * mean, most, budget);
    }
    for (int i = 0; i < n_all; i++)
        budget[i] += in->n_protected;
    return 0;
}
