/* tokenizer_files.h - what the folders of all tokenizers have in common: the JSON files that
 * transformers writes, and the settings that are refused whatever the tokenizer. */
#ifndef WORKER_TOKENIZER_FILES_H
#define WORKER_TOKENIZER_FILES_H
#include <jansson.h>

#include "error.h"

/* NULL: not there. */
struct tokenizer_files {
    json_t *whole;  /* tokenizer.json */
    json_t *config; /* tokenizer_config.json */
    json_t *map;    /* special_tokens_map.json */
    json_t *added;  /* added_tokens.json */
};

/* As transformers 5 reads them: the map and the added tokens only where the config has no
 * added_tokens_decoder. What was loaded before a failure is in *ret. */
int tokenizer_files_load(struct tokenizer_files *ret, const char *dir,
                         struct steer_error *err) STEER_MUSTCHECK;
void tokenizer_files_free(struct tokenizer_files *f);

/* Keys of the config that would make other tokens of a text are refused. *ret_length is its
 * model_max_length, 0 when it sets none, or one over most. dir names the file in errors. */
int tokenizer_config_read(int *ret_length, const json_t *config, int most, const char *dir,
                          struct steer_error *err) STEER_MUSTCHECK;

#endif
