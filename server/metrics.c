/* Prometheus text. See metrics.h. */
#include "server/metrics.h"

#include <stdio.h>

#include "server/base/mem.h"
#include "server/version.h"

static const int codes[METRICS_CODES] = { 200, 204, 400, 401, 404, 405, 413,
                                          415, 429, 499, 500, 503, 0 };
static const char *const routes[ROUTE_N] = { "/v1/chat/completions",
                                             "/v1/completions",
                                             "/v1/models",
                                             "/v1/models/{id}",
                                             "/tokenize",
                                             "/detokenize",
                                             "/health",
                                             "/version",
                                             "/metrics",
                                             "/",
                                             "other" };
static const char *const phases[PHASE_N] = { "prompt", "decode" };

void metrics_count(struct metrics *m, enum route r, int status)
{
    int i = 0;
    while (i < METRICS_CODES - 1 && codes[i] != status)
        i++;
    atomic_fetch_add_explicit(&m->requests[r][i], 1, memory_order_relaxed);
}

/* A label value: backslash, quote and newline are escaped. */
static void label(struct buf *out, const char *s)
{
    for (; *s; s++) {
        if (*s == '\n')
            (void)buf_adds(out, "\\n");
        else {
            if (*s == '"' || *s == '\\')
                (void)buf_addc(out, '\\');
            (void)buf_addc(out, *s);
        }
    }
}

struct writer {
    struct buf *out;
    const char *model;
};

static void head(const struct writer *w, const char *prefix, const char *name, const char *type,
                 const char *help)
{
    (void)buf_addf(w->out, "# HELP %s%s %s\n# TYPE %s%s %s\n", prefix, name, help, prefix, name,
                   type);
}

/* name{model_name="...",engine="0"<extra> : the caller closes the brace. */
static void series(const struct writer *w, const char *prefix, const char *name, const char *suffix)
{
    (void)buf_addf(w->out, "%s%s%s{model_name=\"", prefix, name, suffix);
    label(w->out, w->model);
    (void)buf_adds(w->out, "\",engine=\"0\"");
}

/* One value under our name and, when vllm is not NULL, under vLLM's. */
static void value(const struct writer *w, const char *name, const char *vllm, const char *type,
                  const char *help, double v)
{
    head(w, "wring_", name, type, help);
    series(w, "wring_", name, "");
    (void)buf_addf(w->out, "} %.17g\n", v);
    if (!vllm)
        return;
    head(w, "vllm:", vllm, type, help);
    series(w, "vllm:", vllm, "");
    (void)buf_addf(w->out, "} %.17g\n", v);
}

static void histogram_as(const struct writer *w, const char *prefix, const char *name,
                         const char *help, const struct histogram *h)
{
    uint64_t total = 0;
    head(w, prefix, name, "histogram", help);
    for (int i = 0; i <= h->n; i++) {
        total += atomic_load_explicit(&h->count[i], memory_order_relaxed);
        series(w, prefix, name, "_bucket");
        if (i < h->n)
            (void)buf_addf(w->out, ",le=\"%g\"} %llu\n", h->bound[i], (unsigned long long)total);
        else
            (void)buf_addf(w->out, ",le=\"+Inf\"} %llu\n", (unsigned long long)total);
    }
    series(w, prefix, name, "_sum");
    (void)buf_addf(w->out, "} %.17g\n",
                   (double)atomic_load_explicit(&h->sum_us, memory_order_relaxed) / 1e6);
    series(w, prefix, name, "_count");
    (void)buf_addf(w->out, "} %llu\n", (unsigned long long)total);
}

static void histogram(const struct writer *w, const char *name, const char *vllm, const char *help,
                      const struct histogram *h)
{
    histogram_as(w, "wring_", name, help, h);
    if (vllm)
        histogram_as(w, "vllm:", vllm, help, h);
}

/* Pages of the pool by what they are used for; they add up to kv_pages. */
static void pages_by_kind(const struct writer *w, const struct engine_stats *s)
{
    int64_t pages = atomic_load(&s->kv_pages), used = atomic_load(&s->kv_used);
    int64_t cached = atomic_load(&s->kv_cached), narrow = atomic_load(&s->kv_split);
    const struct {
        const char *kind;
        int64_t n;
    } row[] = { { "wide", used - narrow },
                { "narrow", narrow },
                { "cached", cached },
                { "free", pages - used - cached } };

    head(w, "wring_", "kv_pool_pages", "gauge",
         "KV pages by use: whole, split into narrow ones, kept for their prefix, free.");
    for (size_t i = 0; i < sizeof(row) / sizeof(row[0]); i++) {
        series(w, "wring_", "kv_pool_pages", "");
        (void)buf_addf(w->out, ",kind=\"%s\"} %lld\n", row[i].kind, (long long)row[i].n);
    }
}

static void write_pressing(const struct writer *w, const struct engine_stats *s)
{
    pages_by_kind(w, s);
    value(w, "kv_narrow_pages", NULL, "gauge", "Narrow pages that pressed sequences hold.",
          (double)atomic_load(&s->kv_narrow));
    value(w, "kv_compactions_total", NULL, "counter", "Times that a sequence's cache was pressed.",
          (double)atomic_load(&s->compactions));
    value(w, "kv_layer_major_total", NULL, "counter",
          "Prompts computed and pressed layer by layer.", (double)atomic_load(&s->layer_major));
    value(w, "kv_slots_evicted_total", NULL, "counter", "Slots of KV heads that were not kept.",
          (double)atomic_load(&s->kv_evicted));
    value(w, "kv_slots_merged_total", NULL, "counter",
          "Slots of KV heads, not kept, that a merge took in.", (double)atomic_load(&s->kv_merged));
    value(w, "kv_budgets_raised_total", NULL, "counter",
          "Compactions whose guard gave more than the budget.",
          (double)atomic_load(&s->kv_guarded));
    value(w, "kv_swaps_total", NULL, "counter",
          "Pressed sequences that were copied out of the pool to make room.",
          (double)atomic_load(&s->swaps));
    histogram(w, "kv_compaction_seconds", NULL, "Of pressing one sequence.", &s->compaction_time);
    histogram(w, "kv_compression_ratio", NULL,
              "Bytes of a pressed prompt, as a part of a full cache's.", &s->kv_ratio);
    histogram(w, "kv_retained_mass", NULL,
              "Attention that the kept slots of a pressed prompt hold, 0 to 1.", &s->kv_mass);
}

static void finished_as(const struct writer *w, const char *prefix, const char *name,
                        const char *label_name, const struct engine_stats *s)
{
    static const char *const reason[] = { NULL, "stop", "length", "abort", "error" };
    head(w, prefix, name, "counter", "Finished sequences by reason.");
    for (int r = FINISH_STOP; r <= FINISH_ERROR; r++) {
        series(w, prefix, name, "");
        (void)buf_addf(w->out, ",%s=\"%s\"} %llu\n", label_name, reason[r],
                       (unsigned long long)atomic_load(&s->finished[r]));
    }
}

static void write_engine(const struct writer *w, const struct engine_stats *s)
{
    double pages = (double)atomic_load(&s->kv_pages), used = (double)atomic_load(&s->kv_used);

    value(w, "requests_running", "num_requests_running", "gauge", "Sequences in the batch.",
          (double)atomic_load(&s->running));
    value(w, "requests_waiting", "num_requests_waiting", "gauge", "Sequences in the queue.",
          (double)atomic_load(&s->waiting));
    value(w, "kv_cache_usage_ratio", "kv_cache_usage_perc", "gauge",
          "Share of the KV pages that sequences hold, 0 to 1.", pages > 0 ? used / pages : 0);
    value(w, "kv_pages", NULL, "gauge", "KV pages in the pool.", pages);
    value(w, "kv_pages_used", NULL, "gauge", "KV pages that sequences hold.", used);
    value(w, "kv_pages_cached", NULL, "gauge", "KV pages kept for their prefix only.",
          (double)atomic_load(&s->kv_cached));
    value(w, "prompt_tokens_total", "prompt_tokens_total", "counter", "Prompt tokens processed.",
          (double)atomic_load(&s->prompt_tokens));
    value(w, "generation_tokens_total", "generation_tokens_total", "counter", "Tokens generated.",
          (double)atomic_load(&s->generation_tokens));
    value(w, "steps_total", NULL, "counter", "Forward passes.", (double)atomic_load(&s->steps));
    value(w, "preemptions_total", "num_preemptions_total", "counter",
          "Times that a sequence gave its pages back, to be computed again or swapped in.",
          (double)atomic_load(&s->preemptions));
    value(w, "prefix_cache_queries_total", "prefix_cache_queries_total", "counter",
          "Tokens looked up in the prefix cache.", (double)atomic_load(&s->prefix_queries));
    value(w, "prefix_cache_hits_total", "prefix_cache_hits_total", "counter",
          "Tokens found in the prefix cache.", (double)atomic_load(&s->prefix_hits));
    finished_as(w, "wring_", "requests_finished_total", "reason", s);
    finished_as(w, "vllm:", "request_success_total", "finished_reason", s);
}

static void write_times(const struct writer *w, const struct engine_stats *s)
{
    histogram(w, "time_to_first_token_seconds", "time_to_first_token_seconds",
              "From submission to the first token.", &s->ttft);
    histogram(w, "inter_token_latency_seconds", "inter_token_latency_seconds",
              "Between two tokens of a sequence.", &s->inter_token);
    histogram(w, "e2e_request_latency_seconds", "e2e_request_latency_seconds",
              "From submission to the end.", &s->e2e);
    histogram(w, "request_queue_time_seconds", "request_queue_time_seconds",
              "From submission to admission.", &s->queue_time);
    histogram(w, "request_prefill_time_seconds", "request_prefill_time_seconds",
              "From admission to the first token.", &s->prefill_time);
    histogram(w, "request_decode_time_seconds", "request_decode_time_seconds",
              "From the first token to the end.", &s->decode_time);
    histogram(w, "iteration_tokens", "iteration_tokens_total", "Rows of a forward pass.",
              &s->batch_rows);
    histogram(w, "request_prompt_tokens", "request_prompt_tokens", "Prompt tokens of a request.",
              &s->prompt_len);
    histogram(w, "request_generation_tokens", "request_generation_tokens",
              "Generated tokens of a request.", &s->output_len);
}

static void write_front(const struct writer *w, const struct metrics *m)
{
    struct buf *out = w->out;

    head(w, "wring_", "http_requests_total", "counter", "Answered HTTP requests.");
    for (int r = 0; r < ROUTE_N; r++)
        for (int c = 0; c < METRICS_CODES; c++) {
            uint64_t n = atomic_load(&m->requests[r][c]);
            if (n == 0)
                continue;
            (void)buf_addf(out, "wring_http_requests_total{route=\"%s\",code=\"", routes[r]);
            if (codes[c])
                (void)buf_addf(out, "%d\"} %llu\n", codes[c], (unsigned long long)n);
            else
                (void)buf_addf(out, "other\"} %llu\n", (unsigned long long)n);
        }
    head(w, "wring_", "requests_cancelled_total", "counter",
         "Requests whose client left, by where they were.");
    for (int p = 0; p < PHASE_N; p++)
        (void)buf_addf(out, "wring_requests_cancelled_total{phase=\"%s\"} %llu\n", phases[p],
                       (unsigned long long)atomic_load(&m->cancelled[p]));
    value(w, "slow_readers_total", NULL, "counter", "Streams ended because nobody read them.",
          (double)atomic_load(&m->slow_readers));
    value(w, "http_connections", NULL, "gauge", "Open connections.",
          (double)atomic_load(&m->connections));
    value(w, "http_generating", NULL, "gauge", "HTTP requests that wait for the engine.",
          (double)atomic_load(&m->generating));
    value(w, "start_time_seconds", NULL, "gauge", "Unix time of the start.", (double)m->start_s);
}

static void write_info(const struct writer *w, const struct engine *en)
{
    const struct engine_config *c = engine_settings(en);
    struct mem_stats mem;

    mem_stats(&mem);
    value(w, "memory_bytes", NULL, "gauge", "Bytes the program holds, weights and cache included.",
          (double)mem.bytes);
    head(w, "wring_", "build_info", "gauge", "The version.");
    (void)buf_addf(w->out, "wring_build_info{version=\"%s\"} 1\n", WRING_VERSION);
    head(w, "vllm:", "cache_config_info", "gauge", "Shape of the KV cache.");
    series(w, "vllm:", "cache_config_info", "");
    (void)buf_addf(w->out, ",block_size=\"%d\",num_gpu_blocks=\"%lld\"} 1\n", KV_PAGE,
                   (long long)(c->kv_tokens / KV_PAGE));
}

void metrics_write(const struct metrics *m, const struct engine *en, const char *model,
                   struct buf *out)
{
    const struct writer w = { out, model };
    const struct engine_stats *s = engine_stats(en);

    write_engine(&w, s);
    write_times(&w, s);
    write_pressing(&w, s);
    write_front(&w, m);
    write_info(&w, en);
}
