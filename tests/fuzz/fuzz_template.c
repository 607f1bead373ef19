/* Any bytes as a template: compiled, and when that works rendered under small limits. Nothing may crash, leak or run long. */
#include <stdint.h>

#include "server/base/mem.h"
#include "server/text/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const char messages[] = "[{\"role\": \"system\", \"content\": \"s\"}, {\"role\": "
                                   "\"user\", \"content\": \"h\\u00e9 <|x|>\"},"
                                   " {\"role\": \"assistant\", \"content\": null, \"tool_calls\": "
                                   "[{\"function\": {\"name\": \"f\","
                                   " \"arguments\": {\"a\": [1, 2.5, true]}}}]}]";
    static const struct tmpl_limits lim = { .steps = 20000,
                                            .output_bytes = 1 << 16,
                                            .memory_bytes = 8 << 20 };
    struct mem_stats before, after;
    struct tmpl *t = NULL;
    struct tmpl_output o = { 0 };
    mem_stats(&before);
    if (tmpl_open(&t, (const char *)data, n, NULL) == 0) {
        json_t *m = json_loads(messages, 0, NULL);
        struct tmpl_input in = { .messages = m,
                                 .add_generation_prompt = true,
                                 .bos_token = "<s>",
                                 .eos_token = "</s>",
                                 .now_unix = 1750000000 };
        if (tmpl_render(t, &in, &lim, &o, NULL) == 0) {
            size_t at = 0;
            for (int i = 0; i < o.n_seg; at += o.seg[i++].len)
                ASSERT(o.seg[i].start == at && o.seg[i].len > 0);
            ASSERT(at == o.text.len);
        }
        tmpl_output_free(&o);
        tmpl_close(t);
        json_decref(m);
    }
    mem_stats(&after);
    ASSERT(after.blocks == before.blocks);
    return 0;
}
