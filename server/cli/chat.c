/* wring chat: a conversation in the terminal.
 *
 * The main thread reads lines and waits; the engine's thread prints the answer as it comes. Ctrl-C ends an answer, and
 * at the prompt the program. A line that ends in a backslash goes on; /clear forgets the conversation. The exit code is that of the
 * last line, as a shell's: 1 when it got no answer, of which a pipe would otherwise not know.
 */
#include <errno.h>
#include <jansson.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/cli/cli.h"

static const char usage[] = "chat MODEL [options]";

struct chat {
    const struct config *config;
    const struct model *model;
    struct engine *engine;
    bool tty;     /* stdout is a terminal */
    bool refused; /* the last line got no answer */
    json_t *messages;
    struct tok_ids prompt;
    struct buf answer; /* written by the engine's thread until `done` */
    sem_t done;
    enum finish_reason finish;
    struct job_usage usage;
    struct err err;
};

static volatile sig_atomic_t interrupted;

static void on_sigint(int sig)
{
    (void)sig;
    interrupted = 1;
}

static void on_event(struct job *j, const struct job_event *ev)
{
    struct chat *c = j->user;
    if (ev->text_len > 0) {
        if (c->tty)
            cli_show(stdout, ev->text, ev->text_len);
        else
            fwrite(ev->text, 1, ev->text_len, stdout);
        fflush(stdout);
        buf_add(&c->answer, ev->text, ev->text_len);
    }
    if (ev->kind != JOB_DONE)
        return;
    c->finish = ev->finish;
    c->usage = *ev->usage;
    if (ev->err != NULL)
        c->err = *ev->err;
    sem_post(&c->done);
}

static int encode_prompt(struct chat *c, struct err *e)
{
    const struct tokenizer *tok = c->model->tok;
    struct tmpl_output out = { 0 };
    struct tmpl_input in = {
        .messages = c->messages,
        .add_generation_prompt = true,
        .bos_token = tok_text(tok, tok_bos(tok)),
        .eos_token = tok_text(tok, tok_eos(tok)),
        .now_unix = clock_wall_s(),
    };
    TRY(tmpl_render(c->model->tmpl, &in, NULL, &out, e));
    c->prompt.n = 0;
    int rc = tok_encode_segments(tok, out.text.data, out.seg, out.n_seg, &c->prompt);
    tmpl_output_free(&out);
    return rc < 0 ? err_set(e, rc, "no memory for the prompt") : 0;
}

/* Waits for the answer; Ctrl-C asks the engine to end it. */
static void wait_done(struct chat *c, struct job *j)
{
    while (sem_wait(&c->done) != 0)
        if (interrupted)
            engine_cancel(c->engine, j);
}

static int answer(struct chat *c, struct err *e)
{
    TRY(encode_prompt(c, e));
    buf_clear(&c->answer);
    struct job j = {
        .prompt = c->prompt.id,
        .n_prompt = c->prompt.n,
        .max_tokens = (int)c->config->max_tokens,
        .sample = { .temperature = (float)c->config->temperature,
                    .top_p = (float)c->config->top_p,
                    .repetition_penalty = 1,
                    .seed = clock_ns(),
                    .n_logprobs = -1 },
        .on_event = on_event,
        .user = c,
    };
    interrupted = 0;
    struct job *job = &j;
    TRY(engine_submit(c->engine, &job, 1, e));
    wait_done(c, &j);
    interrupted = 0;
    if (c->finish == FINISH_ERROR) {
        *e = c->err;
        return e->code;
    }
    double s = (double)c->usage.decode_ns / 1e9;
    printf("\n");
    if (c->tty)
        printf("\033[2m[%d prompt tokens, %d cached, %d new, %.1f tok/s]\033[0m\n",
               c->usage.prompt_tokens, c->usage.cached_tokens, c->usage.completion_tokens,
               s > 0 ? (c->usage.completion_tokens - 1) / s : 0.0);
    return 0;
}

static int add_message(struct chat *c, const char *role, const char *text, size_t n)
{
    json_t *m = json_pack("{s:s, s:s%}", "role", role, "content", text, n);
    return m != NULL && json_array_append_new(c->messages, m) == 0 ? 0 : -1;
}

static int reset(struct chat *c, struct err *e)
{
    json_array_clear(c->messages);
    const char *system = c->config->system;
    if (system[0] != 0 && add_message(c, "system", system, strlen(system)) < 0)
        return err_set(e, ERR_FORMAT, "system: the text is not UTF-8");
    return 0;
}

/* One line of input, joined where it ends in a backslash; false at the end of input or Ctrl-C. A line that is too long
 * is read to its end and leaves `line` bad. */
static bool read_line(struct buf *line)
{
    char part[4096];
    buf_clear(line);
    if (isatty(STDIN_FILENO))
        fputs("> ", stdout);
    fflush(stdout);
    while (fgets(part, sizeof part, stdin) != NULL) {
        size_t n = strlen(part);
        buf_add(line, part, n);
        if (n == 0 || part[n - 1] != '\n')
            continue;
        if (line->bad != 0)
            return true;
        line->data[--line->len] = 0;
        if (line->len == 0 || line->data[line->len - 1] != '\\')
            return true;
        line->data[line->len - 1] = '\n';
    }
    return line->len > 0 && !interrupted;
}

/* Whether the conversation goes on without its last message, which does not fit the context or which the template refuses. */
static bool take_back(struct chat *c, const struct err *e)
{
    if (e->code != ERR_LIMIT && e->code != ERR_INVALID)
        return false;
    log_text("%s\n/clear forgets the conversation\n", e->text);
    return json_array_remove(c->messages, json_array_size(c->messages) - 1) == 0;
}

/* A line that cannot be answered is told, and the conversation goes on without it. */
static int take_line(struct chat *c, const struct buf *line, struct err *e)
{
    c->refused = true;
    if (line->bad != 0) {
        log_text("the line has more than %zu bytes\n", line->max);
        return 0;
    }
    if (add_message(c, "user", line->data, line->len) < 0) {
        log_text("the line is not UTF-8\n");
        return 0;
    }
    int rc = answer(c, e);
    if (rc < 0)
        return take_back(c, e) ? 0 : rc;
    c->refused = false;
    if (add_message(c, "assistant", buf_str(&c->answer), c->answer.len) < 0)
        return err_set(e, ERR_NOMEM, "no memory for the conversation");
    return 0;
}

static int converse(struct chat *c, struct err *e)
{
    struct buf line;
    int rc = 0;
    if (c->model->tmpl == NULL)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s has no chat template; `wring serve` and /v1/completions can run it",
                       c->model->config.name);
    buf_init(&line, 1 << 20);
    while (rc == 0 && read_line(&line)) {
        if (strcmp(buf_str(&line), "/clear") == 0)
            rc = reset(c, e);
        else if (line.bad != 0 || line.len > 0)
            rc = take_line(c, &line, e);
    }
    buf_free(&line);
    return rc;
}

/* *refused: what was asked last got no answer, and why was said. */
static int run_chat(const struct config *config, bool *refused, struct err *e)
{
    struct session s = { 0 };
    struct chat c = { .config = config, .tty = isatty(STDOUT_FILENO) };
    buf_init(&c.answer, 64 << 20);
    sem_init(&c.done, 0, 0);
    c.messages = json_array();
    int rc = c.messages != NULL ? reset(&c, e) : err_set(e, ERR_NOMEM, "no memory");
    if (rc == 0)
        rc = session_engine(&s, &c.engine, config, 1, true, e);
    if (rc == 0) {
        c.model = s.model;
        struct sigaction sa = { .sa_handler = on_sigint };
        sigaction(SIGINT, &sa, NULL);
        rc = converse(&c, e);
    }
    *refused = c.refused;
    json_decref(c.messages);
    engine_close(c.engine);
    tok_ids_free(&c.prompt);
    buf_free(&c.answer);
    sem_destroy(&c.done);
    session_close(&s);
    return rc;
}

int cmd_chat(int argc, char **argv)
{
    struct config c;
    struct err e;
    bool done;
    bool refused;
    int code = cli_config(&c, CONFIG_CHAT, usage, 1, argc, argv, &done);
    if (done)
        return code;
    c.kv_samples = 0; /* nothing is pressed here: no query is worth its memory */
    code = run_chat(&c, &refused, &e) < 0 ? cli_fail(&e) : refused;
    config_free(&c);
    return code;
}
