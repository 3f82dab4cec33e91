// SPDX-License-Identifier: Apache-2.0
#include "folder.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"
#include "model/net.h"
#include "tensors.h"

int folder_open(struct folder *f, const char *dir, struct steer_error *err)
{
    struct stat st;
    size_t n = strlen(dir);
    *f = (struct folder){.index = NULL};
    while (n > 1 && dir[n - 1] == '/')
        n--;
    if (!n || n >= sizeof f->dir)
        return steer_fail(err, STEER_BAD_MODEL,
                          "a model folder's path has %zu bytes: expected 1 to %zu", n,
                          sizeof f->dir - 1);
    memcpy(f->dir, dir, n);
    if (stat(f->dir, &st) || !S_ISDIR(st.st_mode))
        return steer_fail(err, STEER_NOT_FOUND, "model folder %s does not exist", f->dir);
    snprintf(f->index_file, sizeof f->index_file, "%s/model_index.json", f->dir);
    if (access(f->index_file, F_OK))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: there is no model_index.json: expected a diffusers folder", f->dir);
    return json_file_load(&f->index, f->index_file, err);
}

void folder_close(struct folder *f)
{
    json_decref(f->index);
    f->index = NULL;
}

const char *folder_class(const struct folder *f, const char *part)
{
    const json_t *pair = json_object_get(f->index, part);
    return json_is_array(pair) ? json_string_value(json_array_get(pair, 1)) : NULL;
}

int folder_class_get(const char **ret, const struct folder *f, const char *part,
                     const char *const *classes, const char *expected, struct steer_error *err)
{
    const char *found = folder_class(f, part);
    if (!found)
        return steer_fail(err, STEER_BAD_MODEL, "%s: \"%s\" is missing: expected %s", f->index_file,
                          part, expected);
    for (int i = 0; classes[i]; i++) {
        if (strcmp(found, classes[i]) != 0) continue;
        *ret = classes[i];
        return 0;
    }
    return steer_fail(err, STEER_UNSUPPORTED, "%s: \"%s\" is a %s: expected %s", f->index_file,
                      part, found, expected);
}

int folder_config(json_t **ret, const struct folder *f, const char *part,
                  char path[FOLDER_PATH_BYTES], struct steer_error *err)
{
    snprintf(path, FOLDER_PATH_BYTES, "%s/%s/config.json", f->dir, part);
    return json_file_load(ret, path, err);
}

/* The plain weights win over any variant beside them, and safetensors over torch's archives; a
 * folder that has only fp16 files is read. Where there are shards and a single file, diffusers
 * takes the shards and transformers the file. */
static int weights_open(struct tensors **ret, const struct folder *f, const char *part,
                        const char *base, struct steer_error *err)
{
    static const struct {
        const char *file, *index;
        int torch;
    } kinds[] = {{".safetensors", ".safetensors.index.json", 0},
                 {".bin", ".bin.index.json", 1},
                 {".fp16.safetensors", ".safetensors.index.fp16.json", 0},
                 {".fp16.bin", ".bin.index.fp16.json", 1}};
    int file_first = strcmp(base, "model") == 0;
    char path[FOLDER_PATH_BYTES];
    for (size_t i = 0; i < 2 * sizeof kinds / sizeof *kinds; i++) {
        const char *name = file_first && kinds[i / 2].torch ? "pytorch_model" : base;
        snprintf(path, sizeof path, "%s/%s/%s%s", f->dir, part, name,
                 i % 2 == (size_t)file_first ? kinds[i / 2].index : kinds[i / 2].file);
        if (access(path, F_OK) == 0) return tensors_open(ret, path, err);
    }
    return steer_fail(err, STEER_BAD_MODEL,
                      "%s/%s: there is no %s.safetensors (nor .safetensors.index.json, nor .bin)",
                      f->dir, part, base);
}

int folder_params(struct params **ret, const struct folder *f, struct compute *c, const char *part,
                  const char *base, struct steer_error *err)
{
    struct tensors *files = NULL;
    int code = weights_open(&files, f, part, base, err);
    if (code) return code;
    code = params_new(ret, c, &files);
    if (code) {
        tensors_close(files);
        return steer_fail(err, code, "out of memory");
    }
    return 0;
}
