// SPDX-License-Identifier: Apache-2.0
#include "model_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "json.h"
#include "recipe.h"

static const struct {
    const char *name;
    enum checkpoint_part kind;
} parts[MODEL_FILE_PARTS] = {{"unet", CHECKPOINT_UNET},
                             {"transformer", CHECKPOINT_TRANSFORMER},
                             {"vae", CHECKPOINT_VAE},
                             {"text_encoder", CHECKPOINT_TEXT},
                             {"text_encoder_2", CHECKPOINT_TEXT_2}};

const char *model_file_part_name(size_t i)
{
    return parts[i].name;
}

int model_file_is(const char *path)
{
    struct stat st;
    size_t n = strlen(path);
    return n > 5 && strcmp(path + n - 5, ".json") == 0 && !stat(path, &st) && S_ISREG(st.st_mode);
}

enum wanted { WANT_FOLDER = 1, WANT_FILE = 2 };

/* The path that value says, from f's folder, and whether it is a folder. */
static int path_read(char out[MODEL_FILE_PATH_BYTES], int *is_folder, const struct model_file *f,
                     const char *key, const json_t *value, enum wanted wanted,
                     struct steer_error *err)
{
    static const char *const names[] = {"", "a folder", "a file", "a file or a folder"};
    const char *said = json_string_value(value), *slash = strrchr(f->path, '/');
    char shown[JSON_SHOWN_BYTES];
    struct stat st;
    int above = said && *said != '/' && slash ? (int)(slash + 1 - f->path) : 0;
    if (!said || !*said)
        return steer_fail(err, STEER_BAD_MODEL, "%s: \"%s\" is %s: expected the path of %s",
                          f->path, key, json_shown(shown, value), names[wanted]);
    if (snprintf(out, MODEL_FILE_PATH_BYTES, "%.*s%s", above, f->path, said) >=
        MODEL_FILE_PATH_BYTES)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"%s\" has %zu bytes with its folder: expected at most %d", f->path,
                          key, strlen(said) + (size_t)above, MODEL_FILE_PATH_BYTES - 1);
    if (stat(out, &st))
        return steer_fail(err, STEER_NOT_FOUND, "%s: \"%s\": there is no %s", f->path, key, out);
    *is_folder = S_ISDIR(st.st_mode);
    if (!(wanted & (*is_folder ? WANT_FOLDER : S_ISREG(st.st_mode) ? WANT_FILE : 0)))
        return steer_fail(err, STEER_BAD_MODEL, "%s: \"%s\": %s is %s: expected %s", f->path, key,
                          out,
                          *is_folder            ? "a folder"
                          : S_ISREG(st.st_mode) ? "a file"
                                                : "neither file nor folder",
                          names[wanted]);
    return 0;
}

static int lora_read(struct model_file *f, const json_t *value, struct steer_error *err)
{
    char key[32], shown[JSON_SHOWN_BYTES];
    const char *name;
    json_t *inner;
    int is_folder;
    size_t at = f->loras_count++;
    struct lora_option *lora = f->loras + at;
    snprintf(key, sizeof key, "loras[%zu].file", at);
    if (!json_is_object(value))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"loras[%zu]\" is %s: expected {\"file\": ..., \"weight\": ...}",
                          f->path, at, json_shown(shown, value));
    json_object_foreach((json_t *)(uintptr_t)value, name, inner)
    {
        if (strcmp(name, "file") != 0 && strcmp(name, "weight") != 0)
            return steer_fail(err, STEER_BAD_MODEL,
                              "%s: \"loras[%zu].%.100s\" is not known: expected file and weight",
                              f->path, at, name);
    }
    lora->path = f->lora_paths[at];
    int code = json_number(&lora->weight, value, "weight", 1, f->path, err);
    return code ? code
                : path_read(f->lora_paths[at], &is_folder, f, key, json_object_get(value, "file"),
                            WANT_FILE, err);
}

static int loras_read(struct model_file *f, const json_t *list, struct steer_error *err)
{
    char shown[JSON_SHOWN_BYTES];
    if (!json_is_array(list) || json_array_size(list) > MODEL_FILE_LORAS_MAX)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"loras\" is %s: expected a list of at most %d", f->path,
                          json_shown(shown, list), MODEL_FILE_LORAS_MAX);
    int code = 0;
    for (size_t i = 0; i < json_array_size(list) && !code; i++)
        code = lora_read(f, json_array_get(list, i), err);
    return code;
}

/* By name alone: a file's content would not be in the numerics class (docs/architecture.md). */
static int recipe_read(struct model_file *f, const json_t *value, struct steer_error *err)
{
    const char *name = json_string_value(value);
    char shown[JSON_SHOWN_BYTES];
    if (!name || !*name || strlen(name) > STEER_NAME_BYTES_MAX || recipe_is_file(name))
        return steer_fail(err, STEER_BAD_MODEL, "%s: \"recipe\" is %s: expected a recipe's name",
                          f->path, json_shown(shown, value));
    snprintf(f->recipe, sizeof f->recipe, "%s", name);
    return 0;
}

static int key_read(struct model_file *f, const char *key, const json_t *value,
                    struct steer_error *err)
{
    int is_folder;
    if (strcmp(key, "base") == 0)
        return path_read(f->base, &is_folder, f, key, value, WANT_FOLDER, err);
    if (strcmp(key, "loras") == 0) return loras_read(f, value, err);
    if (strcmp(key, "recipe") == 0) return recipe_read(f, value, err);
    if (strcmp(key, "mean_latent") == 0)
        return path_read(f->mean_latent, &is_folder, f, key, value, WANT_FILE, err);
    if (strcmp(key, "single_file") == 0)
        return path_read(f->single_file.path, &f->single_file.is_folder, f, key, value, WANT_FILE,
                         err);
    for (size_t i = 0; i < MODEL_FILE_PARTS; i++)
        if (strcmp(key, parts[i].name) == 0)
            return path_read(f->parts[i].path, &f->parts[i].is_folder, f, key, value,
                             WANT_FOLDER | WANT_FILE, err);
    return steer_fail(err, STEER_BAD_MODEL,
                      "%s: \"%.100s\" is not known: expected base, single_file, unet, transformer, "
                      "vae, text_encoder, text_encoder_2, loras, mean_latent or recipe",
                      f->path, key);
}

int model_file_load(struct model_file **ret, const char *path, struct steer_error *err)
{
    struct model_file *f = NULL;
    json_t *root = NULL, *value;
    const char *key;
    if (strlen(path) >= MODEL_FILE_PATH_BYTES)
        return steer_fail(err, STEER_BAD_MODEL,
                          "a model file's path has %zu bytes: expected at most %d", strlen(path),
                          MODEL_FILE_PATH_BYTES - 1);
    int code = json_file_load(&root, path, err);
    if (code) return code;
    if (!(f = calloc(1, sizeof *f))) code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    if (f) strcpy(f->path, path);
    json_object_foreach(root, key, value) if (!code) code = key_read(f, key, value, err);
    if (!code && !*f->base)
        code = steer_fail(err, STEER_BAD_MODEL,
                          "%s: \"base\" is missing: expected a model folder's path", path);
    json_decref(root);
    if (code)
        free(f);
    else
        *ret = f;
    return code;
}

const struct model_file_part *model_file_part(const struct model_file *f, const char *part,
                                              enum checkpoint_part *ret_kind)
{
    for (size_t i = 0; f && i < MODEL_FILE_PARTS; i++) {
        if (strcmp(part, parts[i].name) != 0) continue;
        *ret_kind = parts[i].kind;
        return *f->parts[i].path ? f->parts + i : *f->single_file.path ? &f->single_file : NULL;
    }
    return NULL;
}
