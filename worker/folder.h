/* folder.h - a model folder as Hugging Face diffusers lays it out: what model_index.json says of
 * its parts, and each part's configuration and tensor files; or a model file (model_file.h), whose
 * base is such a folder and whose parts stand in for the folder's. */
#ifndef WORKER_FOLDER_H
#define WORKER_FOLDER_H
#include <jansson.h>

#include "error.h"

#define FOLDER_PATH_BYTES 1400

struct compute;
struct params;  /* model/net.h */
struct tensors; /* tensors.h */

struct folder {
    char dir[1024]; /* of a model file: its base */
    char index_file[1100];
    json_t *index;
    struct model_file *file; /* NULL: the folder as it is */
};

/* f must stay where it is and be closed after a failure too. STEER_NOT_FOUND, STEER_BAD_MODEL. */
int folder_open(struct folder *f, const char *path, struct steer_error *err) STEER_MUSTCHECK;
void folder_close(struct folder *f);

/* The class of a part, or NULL where the index leaves it out ([null, null], null, absent). */
const char *folder_class(const struct folder *f, const char *part);
/* The same where it must be one of classes (NULL ends them); expected says so in words. */
int folder_class_get(const char **ret, const struct folder *f, const char *part,
                     const char *const *classes, const char *expected,
                     struct steer_error *err) STEER_MUSTCHECK;
/* Where a part's file is: in PART, or in the folder that stands in for it; "" for the folder's own
 * files. */
void folder_path(char path[FOLDER_PATH_BYTES], const struct folder *f, const char *part,
                 const char *name);
/* config.json of PART, whose path is left in path; the caller owns *ret (json_decref). */
int folder_config(json_t **ret, const struct folder *f, const char *part,
                  char path[FOLDER_PATH_BYTES], struct steer_error *err) STEER_MUSTCHECK;
/* Where PART's tensors come from, for errors. */
void folder_source(char text[2 * FOLDER_PATH_BYTES], const struct folder *f, const char *part);
/* PART's tensor files. The caller owns *ret (tensors_close). */
int folder_tensors(struct tensors **ret, const struct folder *f, const char *part,
                   struct steer_error *err) STEER_MUSTCHECK;
/* The parameters in them. The caller owns *ret (params_free). */
int folder_params(struct params **ret, const struct folder *f, struct compute *c, const char *part,
                  struct steer_error *err) STEER_MUSTCHECK;

#endif
