/* The engine's part of pressing: what a job may ask for, when a sequence is pressed, what is told of it, and how a pressed one
 * makes room.
 */
#include "server/engine/engine_internal.h"
#include "server/engine/stats.h"

int press_open(struct engine *en, struct err *e)
{
    const struct model_config *m = &en->model->config;
    return kv_compactor_open(&en->compactor, en->pool, &en->model->rope, m->n_heads / m->n_kv_heads,
                             en->model->attn_scale, e);
}

int press_check(const struct engine *en, const struct job *j, struct err *e)
{
    const struct kv_policy *policy = j->kv.policy;
    struct kv_seq kv;
    int limit, window = en->model->config.window;
    if (window > 0 && policy != NULL && !policy->keeps_all)
        return err_set(e, ERR_UNSUPPORTED,
                       "the policy '%s' cannot press the cache of this model: its attention has a "
                       "sliding window of %d tokens",
                       policy->name, window);
    return seq_plan(&kv, &limit, j, en->pool, &en->config, e);
}

/* ---- pressing -------------------------------------------------------------------------------------------------- */

static void add(_Atomic uint64_t *counter, int64_t n)
{
    atomic_fetch_add_explicit(counter, (uint64_t)n, memory_order_relaxed);
}

/* was: the report before the last compaction. */
static void count(struct engine *en, const struct seq *s, const struct kv_report *was)
{
    struct engine_stats *t = &en->stats;
    const struct kv_report *r = &s->report;
    add(&t->compactions, 1);
    add(&t->kv_evicted, r->evicted - was->evicted);
    add(&t->kv_merged, r->merged - was->merged);
    add(&t->kv_guarded, r->raised && !was->raised);
    histogram_observe(&t->compaction_time, (double)(r->ns - was->ns) / 1e9);
    if (was->n_compactions > 0)
        return;
    double full = (double)s->kv.n_tokens * (double)kv_token_bytes(kv_pool_shape(en->pool));
    histogram_observe(&t->kv_ratio, (double)kv_seq_bytes(&s->kv, en->pool) / full);
    histogram_observe(&t->kv_mass, r->mass_mean);
}

int press_seq(struct engine *en, struct seq *s, struct err *e)
{
    if (s->finish != FINISH_NONE || !kv_compact_due(&s->kv))
        return 0;
    if (atomic_load(&s->job->cancelled)) {
        s->finish = FINISH_CANCELLED;
        return 0;
    }
    struct kv_report none = { 0 }, was = s->report.n_compactions > 0 ? s->report : none;
    int rc = kv_compact(en->compactor, &s->kv, &s->report, e);
    if (rc == ERR_DEVICE)
        return rc;
    if (rc < 0) {
        seq_fail(s, e);
        return 0;
    }
    if (kv_seq_by_layer(&s->kv)) /* more layers are to come */
        return 0;
    en->blocked = false;
    if (s->kv.layer_major && was.n_compactions == 0)
        add(&en->stats.layer_major, 1);
    count(en, s, &was);
    return 0;
}

bool press_detail(const struct engine *en, const struct seq *s, struct job_kv *out)
{
    if (s->survival == NULL || !kv_seq_pressed(&s->kv))
        return false;
    const struct kv_shape *shape = kv_pool_shape(en->pool);
    int heads = shape->n_layers * shape->n_kv_heads, n_prompt = s->job->n_prompt;
    for (int i = 0; i < n_prompt; i++)
        s->survival[i] = i < s->kv.wide_pos0 ? 0 : (float)heads;
    for (int h = 0; h < heads; h++) {
        s->kept_slots[h] = s->kv.n_narrow[h] + s->kv.n_tokens - s->kv.wide_pos0;
        for (int k = 0; k < s->kv.n_narrow[h]; k++)
            s->survival[s->kv.slot[h][k].pos] += 1;
    }
    for (int i = 0; i < n_prompt; i++)
        s->survival[i] /= (float)heads;
    *out = (struct job_kv){ .n_layers = shape->n_layers,
                            .n_kv_heads = shape->n_kv_heads,
                            .slots = s->kept_slots,
                            .survival = s->survival,
                            .report = &s->report };
    return true;
}

/* ---- making room ----------------------------------------------------------------------------------------------- */

int press_out(struct engine *en, struct seq *s, struct err *e)
{
    if (!kv_seq_pressed(&s->kv)) {
        kv_seq_clear(&s->kv, en->pool);
        s->report = (struct kv_report){ 0 }; /* layers that were pressed are so again */
        return 0;
    }
    int rc = kv_seq_swap_out(&s->kv, en->pool, e);
    if (rc == ERR_DEVICE)
        return rc;
    if (rc < 0)
        seq_fail(s, e);
    else
        add(&en->stats.swaps, 1);
    return 0;
}
