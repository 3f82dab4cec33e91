// SPDX-License-Identifier: Apache-2.0
#include "folder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"
#include "model/net.h"
#include "model_file.h"
#include "tensors.h"

/* A part that the base has not cannot be replaced, and one with a configuration of its own may be
 * of another class. */
static int parts_replace(struct folder *f, struct steer_error *err)
{
    char path[FOLDER_PATH_BYTES];
    for (size_t i = 0; i < MODEL_FILE_PARTS; i++) {
        const char *part = model_file_part_name(i);
        const struct model_file_part *by = f->file->parts + i;
        json_t *config = NULL;
        if (!*by->path) continue;
        if (!folder_class(f, part))
            return steer_fail(err, STEER_BAD_MODEL, "%s: \"%s\": the base %s has no such part",
                              f->file->path, part, f->dir);
        if (!by->is_folder) continue;
        int code = folder_config(&config, f, part, path, err);
        if (code) return code;
        const char *class_name = json_string_value(json_object_get(config, "_class_name"));
        if (class_name &&
            json_array_set_new(json_object_get(f->index, part), 1, json_string(class_name)))
            code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
        json_decref(config);
        if (code) return code;
    }
    return 0;
}

static int base_open(struct folder *f, const char *dir, struct steer_error *err)
{
    struct stat st;
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/')
        n--;
    if (!n || n >= sizeof f->dir)
        return steer_fail(err, STEER_BAD_MODEL,
                          "a model folder's path has %zu bytes: expected 1 to %zu", n,
                          sizeof f->dir - 1);
    memcpy(f->dir, dir, n);
    if (stat(f->dir, &st))
        return steer_fail(err, STEER_NOT_FOUND, "model folder %s does not exist", f->dir);
    if (!S_ISDIR(st.st_mode))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s is no folder: expected a diffusers folder or a model file (.json)",
                          f->dir);
    snprintf(f->index_file, sizeof f->index_file, "%s/model_index.json", f->dir);
    if (access(f->index_file, F_OK))
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: there is no model_index.json: expected a diffusers folder", f->dir);
    return json_file_load(&f->index, f->index_file, err);
}

int folder_open(struct folder *f, const char *path, struct steer_error *err)
{
    *f = (struct folder){.index = NULL};
    if (!model_file_is(path)) return base_open(f, path, err);
    int code = model_file_load(&f->file, path, err);
    if (!code && (code = base_open(f, f->file->base, err)))
        return steer_fail_in(err, code, "%s: \"base\"", path);
    return code ? code : parts_replace(f, err);
}

void folder_close(struct folder *f)
{
    json_decref(f->index);
    free(f->file);
    f->index = NULL;
    f->file = NULL;
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

void folder_path(char path[FOLDER_PATH_BYTES], const struct folder *f, const char *part,
                 const char *name)
{
    enum checkpoint_part kind;
    const struct model_file_part *by = model_file_part(f->file, part, &kind);
    if (by && by->is_folder)
        snprintf(path, FOLDER_PATH_BYTES, "%s/%s", by->path, name);
    else
        snprintf(path, FOLDER_PATH_BYTES, "%s/%s%s%s", f->dir, part, *part ? "/" : "", name);
}

void folder_source(char text[2 * FOLDER_PATH_BYTES], const struct folder *f, const char *part)
{
    enum checkpoint_part kind;
    const struct model_file_part *by = model_file_part(f->file, part, &kind);
    if (!by)
        snprintf(text, 2 * FOLDER_PATH_BYTES, "%s/%s", f->dir, part);
    else if (by->is_folder)
        snprintf(text, 2 * FOLDER_PATH_BYTES, "%s", by->path);
    else
        snprintf(text, 2 * FOLDER_PATH_BYTES, "%s with the configuration of %s/%s", by->path,
                 f->dir, part);
}

int folder_config(json_t **ret, const struct folder *f, const char *part,
                  char path[FOLDER_PATH_BYTES], struct steer_error *err)
{
    folder_path(path, f, part, "config.json");
    return json_file_load(ret, path, err);
}

/* The plain weights win over any variant beside them, and safetensors over torch's archives; a
 * folder that has only fp16 files is read. Where there are shards and a single file, diffusers
 * takes the shards and transformers the file. */
int folder_tensors(struct tensors **ret, const struct folder *f, const char *part,
                   struct steer_error *err)
{
    static const struct {
        const char *file, *index;
        int torch;
    } kinds[] = {{".safetensors", ".safetensors.index.json", 0},
                 {".bin", ".bin.index.json", 1},
                 {".fp16.safetensors", ".safetensors.index.fp16.json", 0},
                 {".fp16.bin", ".bin.index.fp16.json", 1}};
    /* transformers' name, and diffusers'. */
    int file_first = strncmp(part, "text_encoder", 12) == 0;
    const char *base = file_first ? "model" : "diffusion_pytorch_model";
    char path[FOLDER_PATH_BYTES], name[64];
    enum checkpoint_part kind;
    const struct model_file_part *by = model_file_part(f->file, part, &kind);
    if (by && !by->is_folder) return checkpoint_open(ret, by->path, kind, err);
    for (size_t i = 0; i < 2 * sizeof kinds / sizeof *kinds; i++) {
        snprintf(name, sizeof name, "%s%s",
                 file_first && kinds[i / 2].torch ? "pytorch_model" : base,
                 i % 2 == (size_t)file_first ? kinds[i / 2].index : kinds[i / 2].file);
        folder_path(path, f, part, name);
        if (access(path, F_OK) == 0) return tensors_open(ret, path, err);
    }
    folder_path(path, f, part, base);
    return steer_fail(err, STEER_BAD_MODEL,
                      "%.*s: there is no %s.safetensors (nor .safetensors.index.json, nor .bin)",
                      (int)(strlen(path) - strlen(base) - 1), path, base);
}

int folder_params(struct params **ret, const struct folder *f, struct compute *c, const char *part,
                  struct steer_error *err)
{
    struct tensors *files = NULL;
    int code = folder_tensors(&files, f, part, err);
    if (code) return code;
    code = params_new(ret, c, &files);
    if (code) {
        tensors_close(files);
        return steer_fail(err, code, "out of memory");
    }
    return 0;
}
