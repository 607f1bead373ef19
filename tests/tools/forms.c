#include "tests/tools/forms.h"

#include <string.h>

#include "server/base/mem.h"
#include "tests/tools/levels.h"

const struct form form_list[FORMS] = {
    { "f32", DT_F32, "f32" },
    { "f16", DT_F32, "f16" },
    { "bf16", DT_F32, "bf16" },
    { "q8", DT_F32, "q8" },
    { "q4", DT_F32, "q4m" },
    { "auto", DT_Q4_0, "q4" },
    /* in groups of 32, which fit every shape: each plane alone, two and three of them */
    { "planes1g32", DT_F32, "planes1g32" },
    { "planes2g32", DT_F32, "planes2g32" },
    { "planes3g32", DT_F32, "planes3g32" },
    { "planes4g32", DT_F32, "planes4g32" },
    { "planes7g32", DT_F32, "planes7g32" },
    { "planes8g32", DT_F32, "planes8g32" },
    { "trellis2", DT_F32, "trellis2" },
    { "trellis3", DT_F32, "trellis3" },
    { "trellis4", DT_F32, "trellis4" },
    { "pvq2", DT_F32, "pvq2" },
    { "pvq3", DT_F32, "pvq3" },
    { "pvq4", DT_F32, "pvq4" },
};

const struct form form_wide[FORMS_WIDE] = {
    { "planes5g32", DT_F32, "planes5g32" }, { "planes6g32", DT_F32, "planes6g32" },
    { "planes1", DT_F32, "planes1" },       { "planes1g128", DT_F32, "planes1g128" },
    { "planes2", DT_F32, "planes2" },       { "planes2g128", DT_F32, "planes2g128" },
    { "planes3", DT_F32, "planes3" },       { "planes3g128", DT_F32, "planes3g128" },
    { "planes4", DT_F32, "planes4" },       { "planes4g128", DT_F32, "planes4g128" },
    { "planes5", DT_F32, "planes5" },       { "planes5g128", DT_F32, "planes5g128" },
    { "planes6", DT_F32, "planes6" },       { "planes6g128", DT_F32, "planes6g128" },
    { "planes7", DT_F32, "planes7" },       { "planes7g128", DT_F32, "planes7g128" },
    { "planes8", DT_F32, "planes8" },       { "planes8g128", DT_F32, "planes8g128" },
};

const struct form form_published[FORMS_PUBLISHED] = {
    { "aqlm2x8g8", DT_F32, "aqlm2x8g8" },   { "aqlm1x16g8", DT_F32, "aqlm1x16g8" },
    { "aqlm1x8g16", DT_F32, "aqlm1x8g16" }, { "aqlm8x8g32", DT_F32, "aqlm8x8g32" },
    { "aqlm3x5g16", DT_F32, "aqlm3x5g16" },
};

void form_blocks(enum dtype type, uint8_t *raw, int rows, int cols)
{
    size_t bytes = dtype_row_bytes(type, cols) * (size_t)rows;
    size_t block = (size_t)dtype_block_bytes(type);
    if (type == DT_F32) {
        for (size_t i = 0; i < bytes; i += sizeof(float)) {
            float f = rnd_normal() * 0.05f;
            memcpy(raw + i, &f, sizeof f);
        }
        return;
    }
    for (size_t i = 0; i < bytes; i++)
        raw[i] = (uint8_t)rnd_bits();
    for (size_t i = 0; i < bytes; i += block) {
        raw[i + 1] = rnd_bits() & 1 ? 0x21 : 0xa0;
        if (type == DT_Q4_1)
            raw[i + 3] = 0xa6;
    }
}

/* Rows at a time, as a loader would take them. */
static int strip_of(const struct weight *w)
{
    int step = codec_step(w->codec);
    return step > CODEC_PANEL ? step : 2 * CODEC_PANEL;
}

static int fill(struct weight *w, struct be *be, const struct form *f, const uint8_t *raw,
                float *scratch, struct err *e)
{
    size_t row = dtype_row_bytes(f->from, w->cols);
    int strip = strip_of(w);
    for (int r = 0; r < w->rows; r += strip) {
        int n = w->rows - r < strip ? w->rows - r : strip;
        if (be->host) {
            weight_fill(w, r, n, f->from, raw + (size_t)r * row, scratch);
            continue;
        }
        struct weight stage;
        TRY(weight_stage_open(&stage, w, n, e));
        weight_fill(&stage, 0, n, f->from, raw + (size_t)r * row, scratch);
        weight_stage_upload(&stage, w, be, r);
        weight_stage_close(&stage);
    }
    return 0;
}

/* Byte i of a part: anything for codes, f16 numbers even in [-1/16, 1/16) or around 1 for what codes mean. */
static uint8_t part_byte(const struct codec_part *p, size_t i)
{
    uint32_t h = (uint32_t)(p->type == DT_F16 ? i / 2 : i) * 0x9e3779b1u;
    h = (h ^ h >> 15) * 0x85ebca6bu;
    h ^= h >> 13;
    if (p->type != DT_F16)
        return (uint8_t)h;
    bool scale = p->n_dims > 1 && p->dim[1] == 1;
    uint16_t number = f32_to_f16((scale ? 1.0f : 0.0f) + ((float)(h & 65535) / 32768 - 1) / 16);
    return (uint8_t)(i % 2 == 0 ? number : number >> 8);
}

static int put_parts(struct weight *w, struct err *e)
{
    struct codec_part part[CODEC_PARTS];
    int n = weight_parts(w, part);
    for (int i = 0; i < n; i++) {
        size_t bytes = codec_part_bytes(&part[i]);
        uint8_t *p = mem_alloc(bytes);
        if (p == NULL)
            return err_set(e, ERR_NOMEM, "no memory for a part");
        for (size_t k = 0; k < bytes; k++)
            p[k] = part_byte(&part[i], k);
        weight_put(w, i, 0, bytes, p);
        mem_free(p);
    }
    return 0;
}

static int open_published(struct weight *w, struct be *be, const struct form *f, bool int8_ok,
                          int rows, int cols, struct err *e)
{
    TRY(weight_open_form(w, be, f->form, int8_ok, rows, cols, e));
    struct weight stage = *w;
    int rc = be->host ? 0 : weight_stage_open(&stage, w, rows, e);
    if (rc == 0)
        rc = put_parts(&stage, e);
    if (rc == 0 && !be->host) {
        weight_stage_upload(&stage, w, be, 0);
        weight_stage_close(&stage);
    }
    if (rc < 0)
        weight_close(w, be);
    return rc;
}

int form_open(struct weight *w, struct be *be, const struct form *f, bool int8_ok, int rows,
              int cols, const uint8_t *raw, struct err *e)
{
    if (weight_set_form(w, f->form, rows, cols, e) == 0 && w->codec->encode == NULL)
        return open_published(w, be, f, int8_ok, rows, cols, e);
    TRY(weight_open(w, be, f->word, int8_ok, f->from, rows, cols, e));
    float *scratch = mem_alloc((size_t)strip_of(w) * (size_t)cols * sizeof(float));
    int rc = scratch == NULL ? err_set(e, ERR_NOMEM, "no memory for %d x %d weights", rows, cols)
                             : fill(w, be, f, raw, scratch, e);
    mem_free(scratch);
    if (rc < 0)
        weight_close(w, be);
    return rc;
}
