/* Writing a model as a Hugging Face-style folder, which source_open reads: pressed matrices as their parts, vectors as F32.
 *
 *     hf_write_open(&w, "OUT", src, config, n, &e);             makes OUT.part, or goes on where a run before was killed
 *     for each shard i that hf_write_has_shard(w, i) denies:
 *         hf_write_shard_begin(w, i);
 *         hf_write_weight(w, "blk.0.attn_q.weight", &matrix, &e);
 *         hf_write_vector(w, "blk.0.attn_norm.weight", norm, dim, &e);
 *         hf_write_shard_end(w, &e);                            model-0000i-of-0000n.safetensors is there, whole
 *     hf_write_finish(w, &e);                                   index, config, tokenizer, template; OUT.part becomes OUT
 *     hf_write_close(w);
 *
 * A shard is written under another name, brought to the disk and renamed: after a kill or a loss of power it is there
 * whole or not at all, and so is OUT. What a shard holds is read back from its own header, so a run that was continued
 * ends with the bytes of one that was not. No clock, host name or order of calls gets into a file.
 *
 * Names are canonical (source.h), the files have transformers'. Rows of q and k are expected as transformers keeps them,
 * whatever the source has: hf_row_of(). A matrix whose only part is a plain tensor "weight" needs no form in config.json.
 * Files that the caller puts into hf_write_folder() stay there and come along.
 *
 * Thread: one owner. Errors leave OUT.part as it was before the call, with whole shards only: try again, or close.
 */
#ifndef WRING_SERVER_MODEL_HF_WRITE_H
#define WRING_SERVER_MODEL_HF_WRITE_H

#include "quant/codec.h"
#include "server/model/source.h"

struct hf_writer;

/* out: must not be there, or be an empty folder; "/" at its end is ignored. src brings tokenizer and chat template, c (which
 * arch->check has seen) the numbers; both are borrowed until the writer is closed. n_shards: 1 to 99,999. ERR_INVALID: out is
 * taken, or OUT.part has shards of another number; ERR_UNSUPPORTED: config.json has no words for c; ERR_IO, ERR_NOMEM. */
int hf_write_open(struct hf_writer **w, const char *out, const struct source *src,
                  const struct model_config *c, int n_shards, struct err *e) WARN_UNUSED;
/* Whether out and OUT.part can be written, before work that takes long; leaves nothing there. */
int hf_write_probe(const char *out, struct err *e) WARN_UNUSED;
/* OUT.part is left for the next run. NULL is accepted. */
void hf_write_close(struct hf_writer *w);
/* OUT.part, or OUT once it is finished. */
const char *hf_write_folder(const struct hf_writer *w);

/* i: 0 to n_shards - 1 (the file's name counts from 1). Whether the shard is there and whole. */
bool hf_write_has_shard(const struct hf_writer *w, int i);

/* Shards come in any order, one at a time. */
void hf_write_shard_begin(struct hf_writer *w, int i);
/* name: "....weight"; the planes of m are the host's, and borrowed until hf_write_shard_end(). */
int hf_write_weight(struct hf_writer *w, const char *name, const struct weight *m,
                    struct err *e) WARN_UNUSED;
/* Bytes that a file takes for m's parts; the planes are not looked at. */
size_t hf_write_bytes(const struct weight *m);
/* v [n] is copied. */
int hf_write_vector(struct hf_writer *w, const char *name, const float *v, int n,
                    struct err *e) WARN_UNUSED;
/* The shard is to bear a mark, which hf_write_has_mark() then finds: for work that goes over shards a second time, and must
 * know which of them it has been over. At most HF_MARK - 1 characters. */
enum { HF_MARK = 32 };
void hf_write_shard_mark(struct hf_writer *w, const char *mark);
bool hf_write_has_mark(const struct hf_writer *w, int i, const char *mark);
/* Forgets the shard under way. */
void hf_write_shard_drop(struct hf_writer *w);
/* ERR_IO: the disk is full, ...; then, too, the shard is forgotten. */
int hf_write_shard_end(struct hf_writer *w, struct err *e) WARN_UNUSED;

/* All but the shards: OUT.part can be opened as OUT will be. Shards may be replaced afterwards, by ones of the same forms.
 * ERR_NOTFOUND: a shard is missing. */
int hf_write_rest(struct hf_writer *w, struct err *e) WARN_UNUSED;
/* The same, and OUT.part becomes OUT. */
int hf_write_finish(struct hf_writer *w, struct err *e) WARN_UNUSED;

/* The row of the tensor (matrix or vector, canonical name) in a model of this config that is row `row` of the folder's: where
 * the config has interleaved rope pairs, the rows of q and k change places within each head; elsewhere it is row itself. */
int hf_row_of(const struct model_config *c, const char *name, int row);

#endif
