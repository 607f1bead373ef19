/* sentencepiece's tokenizer.model: a protobuf message (sentencepiece.proto). */
#include <string.h>

#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/text/sentencepiece.pb-c.h"
#include "server/text/vocab.h"

enum { MAX_FILE = 64 << 20, MAX_UNPACKED = 256 << 20, MODEL_BPE = 2 };

/* protobuf-c asks for its memory here, so that it is counted and bounded: a file of empty pieces unpacks to forty times
 * its size. */
static void *pb_alloc(void *arg, size_t n)
{
    size_t *left = arg;
    if (n > *left)
        return NULL;
    *left -= n;
    return mem_alloc(n > 0 ? n : 1);
}

static void pb_free(void *arg, void *p)
{
    (void)arg;
    mem_free(p);
}

/* Text is taken as it is, but for the space in front: what else the file asks for is told. */
static void warn_of_normalizer(const Wring__Spm__Model *m, const char *path)
{
    const Wring__Spm__NormalizerSpec *n = m->normalizer_spec;
    const char *what = n == NULL                         ? NULL
                       : n->precompiled_charsmap.len > 0 ? "precompiled_charsmap"
                       : !n->has_remove_extra_whitespaces || n->remove_extra_whitespaces
                           ? "remove_extra_whitespaces"
                           : NULL;
    if (what != NULL)
        LOG(W, "normalizer", "file=%s ignored=%s note=\"odd texts become other tokens\"",
            LOG_STR(path), what);
}

static int check_model(const Wring__Spm__Model *m, const char *path, struct err *e)
{
    const Wring__Spm__TrainerSpec *t = m->trainer_spec;
    if (t != NULL && t->has_model_type && t->model_type != MODEL_BPE)
        return err_set(e, ERR_UNSUPPORTED, "%s: model type %d; only BPE (2) is supported", path,
                       (int)t->model_type);
    if (m->n_pieces < 3 || m->n_pieces > 1 << 22)
        return err_set(e, ERR_FORMAT, "%s: %zu pieces; 3 to %d are possible", path, m->n_pieces,
                       1 << 22);
    for (size_t i = 0; i < m->n_pieces; i++)
        if (m->pieces[i]->has_type &&
            (m->pieces[i]->type < TOK_NORMAL || m->pieces[i]->type > TOK_BYTE))
            return err_set(e, ERR_FORMAT, "%s: piece %zu has type %d; 1 to 6 are defined", path, i,
                           (int)m->pieces[i]->type);
    return 0;
}

static int id_or(bool has, int id, int otherwise)
{
    return has ? id : otherwise;
}

static int open_model(const Wring__Spm__Model *m, struct tokenizer **out, struct err *e)
{
    struct vocab v = { 0 };
    int rc = vocab_alloc(&v, (int)m->n_pieces, e);
    if (rc < 0) {
        vocab_free(&v);
        return rc;
    }
    for (int i = 0; i < v.n; i++) {
        const Wring__Spm__Piece *p = m->pieces[i];
        v.text[i] = p->piece != NULL ? p->piece : "";
        v.len[i] = strlen(v.text[i]);
        v.score[i] = p->score;
        v.kind[i] = (uint8_t)(p->has_type ? p->type : TOK_NORMAL);
    }
    const Wring__Spm__TrainerSpec *t = m->trainer_spec;
    const Wring__Spm__NormalizerSpec *n = m->normalizer_spec;
    struct tok_vocab tv = { .model = TOK_SPM,
                            .n = v.n,
                            .text = v.text,
                            .len = v.len,
                            .score = v.score,
                            .kind = v.kind,
                            .unk = t != NULL ? id_or(t->has_unk_id, t->unk_id, 0) : 0,
                            .bos = t != NULL ? id_or(t->has_bos_id, t->bos_id, 1) : 1,
                            .eos = t != NULL ? id_or(t->has_eos_id, t->eos_id, 2) : 2,
                            .eot = -1,
                            .add_bos = true,
                            .add_space_prefix =
                                n == NULL || !n->has_add_dummy_prefix || n->add_dummy_prefix };
    rc = tok_open(out, &tv, e);
    vocab_free(&v);
    return rc;
}

int tok_open_spm(struct tokenizer **out, const char *path, struct err *e)
{
    struct buf b;
    buf_init(&b, MAX_FILE);
    int rc = buf_read_file(&b, path, e);
    Wring__Spm__Model *m = NULL;
    size_t left = MAX_UNPACKED;
    ProtobufCAllocator allocator = { .alloc = pb_alloc, .free = pb_free, .allocator_data = &left };
    if (rc == 0) {
        m = wring__spm__model__unpack(&allocator, b.len, (const uint8_t *)buf_str(&b));
        if (m == NULL)
            rc =
                err_set(e, ERR_FORMAT, "%s: not a sentencepiece model, or too large for one", path);
    }
    if (rc == 0)
        rc = check_model(m, path, e);
    if (rc == 0 && (rc = open_model(m, out, e)) < 0)
        err_prefix(e, "%s", path);
    if (rc == 0)
        warn_of_normalizer(m, path);
    if (m != NULL)
        wring__spm__model__free_unpacked(m, &allocator);
    buf_free(&b);
    return rc;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static int pack(const Wring__Spm__Model *m, struct buf *out)
{
    size_t n = wring__spm__model__get_packed_size(m);
    TRY(buf_reserve(out, n));
    wring__spm__model__pack(m, (uint8_t *)out->data + out->len);
    out->len += n;
    out->data[out->len] = 0;
    return 0;
}

static int pack_vocab(const struct vocab *v, struct buf *out, struct err *e)
{
    Wring__Spm__Piece *piece = mem_zalloc((size_t)v->n, sizeof *piece);
    Wring__Spm__Piece **list = mem_zalloc((size_t)v->n, sizeof *list);
    struct buf text; /* pieces with U+2581, each NUL-terminated */
    buf_init(&text, MAX_FILE);
    int rc = piece != NULL && list != NULL ? 0 : ERR_NOMEM;
    for (int i = 0; rc == 0 && i < v->n; i++)
        for (size_t k = 0; k <= v->len[i]; k++) {
            char c = k < v->len[i] ? v->text[i][k] : 0;
            rc = c == ' ' ? buf_adds(&text, "\xE2\x96\x81") : buf_addc(&text, c);
            if (rc < 0)
                break;
        }
    const char *p = buf_str(&text);
    for (int i = 0; rc == 0 && i < v->n; i++) {
        wring__spm__piece__init(&piece[i]);
        piece[i].piece = (char *)p;
        piece[i].has_score = piece[i].has_type = 1;
        piece[i].score = v->score[i];
        piece[i].type = v->kind[i];
        list[i] = &piece[i];
        p += strlen(p) + 1;
    }
    if (rc == 0) {
        Wring__Spm__Model m = WRING__SPM__MODEL__INIT;
        Wring__Spm__TrainerSpec t = WRING__SPM__TRAINER_SPEC__INIT;
        Wring__Spm__NormalizerSpec n = WRING__SPM__NORMALIZER_SPEC__INIT;
        t.has_model_type = t.has_vocab_size = t.has_byte_fallback = 1;
        t.model_type = MODEL_BPE;
        t.vocab_size = v->n;
        t.byte_fallback = 1;
        t.has_unk_id = t.has_bos_id = t.has_eos_id = t.has_pad_id = 1;
        t.unk_id = 0;
        t.bos_id = 1;
        t.eos_id = 2;
        t.pad_id = -1;
        n.name = (char *)"identity";
        n.has_add_dummy_prefix = n.has_remove_extra_whitespaces = n.has_escape_whitespaces = 1;
        n.add_dummy_prefix = n.escape_whitespaces = 1;
        n.remove_extra_whitespaces = 0;
        m.n_pieces = (size_t)v->n;
        m.pieces = list;
        m.trainer_spec = &t;
        m.normalizer_spec = &n;
        rc = pack(&m, out);
    }
    buf_free(&text);
    mem_free(list);
    mem_free(piece);
    return rc < 0 ? err_set(e, rc, "no memory to write a tokenizer of %d tokens", v->n) : 0;
}

int tok_spm_from_llama2c(const char *path, int n, struct buf *out, struct err *e)
{
    struct vocab v;
    TRY(vocab_read_llama2c(&v, path, n, e));
    int rc = pack_vocab(&v, out, e);
    vocab_free(&v);
    return rc;
}
