// SPDX-License-Identifier: Apache-2.0
#include "tokenizer_files.h"

#include <stdio.h>
#include <unistd.h>

#include "../json.h"

static int optional_load(json_t **ret, const char *dir, const char *name, struct steer_error *err)
{
    char path[1600];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return access(path, F_OK) ? 0 : json_file_load(ret, path, err);
}

int tokenizer_files_load(struct tokenizer_files *f, const char *dir, struct steer_error *err)
{
    int code;
    if ((code = optional_load(&f->whole, dir, "tokenizer.json", err)) ||
        (code = optional_load(&f->config, dir, "tokenizer_config.json", err)))
        return code;
    if (json_is_object(json_object_get(f->config, "added_tokens_decoder"))) return 0;
    if ((code = optional_load(&f->map, dir, "special_tokens_map.json", err))) return code;
    return optional_load(&f->added, dir, "added_tokens.json", err);
}

void tokenizer_files_free(struct tokenizer_files *f)
{
    json_decref(f->whole);
    json_decref(f->config);
    json_decref(f->map);
    json_decref(f->added);
    *f = (struct tokenizer_files){0};
}

int tokenizer_config_read(int *ret_length, const json_t *config, int most, const char *dir,
                          struct steer_error *err)
{
    static const char *const sides[] = {"right", NULL};
    char path[1600];
    int side, split, code;
    double length;
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    if ((code = json_choice(&side, config, "padding_side", 0, sides, path, err)) ||
        (code = json_choice(&side, config, "truncation_side", 0, sides, path, err)) ||
        (code = json_flag(&split, config, "split_special_tokens", 0, path, err)) ||
        (code = json_number(&length, config, "model_max_length", 1e30, path, err)))
        return code;
    if (split)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: \"split_special_tokens\" is true: expected false", path);
    if (length < 2)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"model_max_length\" is %g: expected 2 or more", path, length);
    /* transformers writes 1e30 where no length was set. */
    *ret_length = length <= most ? (int)length : 0;
    return 0;
}
