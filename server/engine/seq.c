#include "server/engine/seq.h"

#include <string.h>

#include "server/base/mem.h"

enum {
    TEXT_ROOM =
        512, /* bytes of text taken at once: a token's piece is shorter than that in every vocabulary at hand */
    TEXT_MAX = 1 << 20
};

static int open_text(struct seq *s)
{
    size_t longest = 0;
    for (int i = 0; i < s->job->n_stop; i++) {
        size_t n = strlen(s->job->stop[i]);
        longest = n > longest ? n : longest;
    }
    buf_init(&s->text, longest + TEXT_MAX);
    TRY(buf_reserve(&s->text, longest + TEXT_ROOM));
    detok_init(&s->detok);
    return stop_open(&s->stop, s->job->stop, s->job->n_stop);
}

static int open_buffers(struct seq *s, const struct kv_shape *shape)
{
    if ((s->token = mem_alloc((size_t)s->limit * sizeof *s->token)) == NULL)
        return ERR_NOMEM;
    size_t heads = (size_t)shape->n_layers * (size_t)shape->n_kv_heads;
    if (s->job->kv_detail && !s->kv.opt.policy->keeps_all &&
        ((s->kept_slots = mem_zalloc(heads, sizeof *s->kept_slots)) == NULL ||
         (s->survival = mem_zalloc((size_t)s->job->n_prompt, sizeof *s->survival)) == NULL))
        return ERR_NOMEM;
    return open_text(s);
}

int seq_plan(struct kv_seq *kv, int *limit, const struct job *j, const struct kv_pool *pool,
             const struct engine_config *c, struct err *e)
{
    struct kv_options opt = j->kv;
    int room = engine_room(c, opt.policy) - j->n_prompt, whole = engine_room(c, NULL);
    opt.layer_major = j->prompt_logprobs ? 0 : c->layer_major; /* those want logits of every row */
    *limit = j->n_prompt + (j->max_tokens < 0 || j->max_tokens > room ? room : j->max_tokens);
    TRY(kv_seq_plan(kv, pool, &opt, j->n_prompt, *limit, e));
    if (kv->max_spare > 0 || *limit <= whole)
        return 0;
    *limit = whole;          /* it stays whole */
    if (j->n_prompt < whole) /* with a token to make, if it is as long */
        return 0;
    return err_set(e, ERR_LIMIT,
                   "the prompt has %d tokens, all of which this request keeps; the KV pool has "
                   "room for %d, those of the answer included",
                   j->n_prompt, whole);
}

int seq_open(struct seq **out, struct job *j, const struct model *m, struct kv_pool *pool,
             const struct engine_config *c, struct err *e)
{
    struct seq *s = mem_zalloc(1, sizeof *s);
    if (s == NULL)
        return err_set(e, ERR_NOMEM, "no memory for a sequence");
    s->job = j;
    int rc = sampler_open(&s->sampler, &j->sample, m->config.vocab, e);
    if (rc == 0)
        rc = seq_plan(&s->kv, &s->limit, j, pool, c, e);
    if (rc == 0)
        rc = kv_seq_tables(&s->kv, pool, e);
    if (rc == 0 && (rc = open_buffers(s, kv_pool_shape(pool))) < 0)
        (void)err_set(e, rc, "no memory for a sequence of %d tokens", s->limit);
    if (rc < 0) {
        seq_close(s, pool);
        return rc;
    }
    s->shares = c->prefix_cache && !j->no_prefix_cache && s->kv.opt.policy->shares_prefix;
    memcpy(s->token, j->prompt, (size_t)j->n_prompt * sizeof *s->token);
    s->n_tokens = j->n_prompt;
    sampler_accept_prompt(s->sampler, j->prompt, j->n_prompt);
    *out = s;
    return 0;
}

void seq_close(struct seq *s, struct kv_pool *pool)
{
    if (s == NULL)
        return;
    kv_seq_close(&s->kv, pool);
    stop_close(&s->stop);
    buf_free(&s->text);
    sampler_close(s->sampler);
    mem_free(s->survival);
    mem_free(s->kept_slots);
    mem_free(s->token);
    mem_free(s);
}

bool seq_wants_row(const struct seq *s, int pos)
{
    int next = pos + 1;
    if (next < s->job->n_prompt)
        return s->job->prompt_logprobs && next >= s->n_scored;
    return next == s->n_tokens && s->job->max_tokens != 0;
}

static void event(struct seq *s, const struct job_event *ev)
{
    s->job->on_event(s->job, ev);
}

void seq_score(struct seq *s, const struct sample_result *r)
{
    int32_t id = s->token[s->n_scored++];
    event(s, &(struct job_event){
                 .kind = JOB_PROMPT, .id = id, .text = "", .has_logprob = r != NULL, .result = r });
}

static bool stops_at(const struct seq *s, const struct tokenizer *tok, int32_t id)
{
    for (int i = 0; i < s->job->n_stop_id; i++)
        if (s->job->stop_id[i] == id)
            return true;
    return !s->job->ignore_eos && tok_is_eog(tok, id);
}

/* Hands out what stop strings let go. */
static size_t release(struct seq *s)
{
    size_t go = stop_push(&s->stop, buf_str(&s->text), s->text.len);
    if (s->stop.hit)
        s->finish = FINISH_STOP;
    return go;
}

void seq_push(struct seq *s, const struct sample_result *r, const struct tokenizer *tok,
              uint64_t now_ns)
{
    s->token[s->n_tokens++] = r->id;
    s->last_ns = now_ns;
    if (s->first_ns == 0)
        s->first_ns = now_ns;
    if (stops_at(s, tok, r->id)) {
        s->finish = FINISH_STOP;
        return;
    }
    int rc = detok_push(&s->detok, tok, r->id, &s->text);
    if (rc < 0) {
        s->finish = FINISH_ERROR;
        (void)err_set(&s->err, rc, "no memory for the text of a token");
        return;
    }
    if (s->n_tokens == s->limit)
        s->finish = FINISH_LENGTH;
    size_t go = release(s);
    event(s, &(struct job_event){ .kind = JOB_TOKEN,
                                  .id = r->id,
                                  .text = buf_str(&s->text),
                                  .text_len = go,
                                  .has_logprob = s->job->sample.n_logprobs >= 0,
                                  .result = r });
    buf_shift(&s->text, go);
}

/* The text that was held back belongs to the answer unless a stop string cut it off. */
static size_t last_text(struct seq *s)
{
    enum finish_reason was = s->finish;
    if (s->stop.hit || detok_flush(&s->detok, &s->text) < 0)
        return 0;
    size_t go = release(s);
    if (s->stop.hit && was != FINISH_STOP && was != FINISH_LENGTH)
        s->finish = was;
    return s->stop.hit ? go : s->text.len;
}

void seq_done(struct seq *s, const struct job_usage *u)
{
    size_t go = last_text(s);
    event(s, &(struct job_event){ .kind = JOB_DONE,
                                  .text = buf_str(&s->text),
                                  .text_len = go,
                                  .finish = s->finish,
                                  .err = s->finish == FINISH_ERROR ? &s->err : NULL,
                                  .usage = u });
}
