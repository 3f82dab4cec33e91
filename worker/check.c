// SPDX-License-Identifier: Apache-2.0
/* steer-worker check: what a model is, which recipes fit it, what it lacks and the memory it needs.
 *
 * A report is a JSON object first, which is what --json prints; people get it in words. */
#include <dirent.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model_file.h"
#include "offer.h"
#include "session.h"
#include "tensors.h"

struct check_args {
    struct machine_args machine;
    int json;
    size_t models;
    struct steer_error first; /* of the first model that is refused */
};

static int set_json(void *target, const char *value, struct steer_error *err)
{
    (void)value;
    (void)err;
    ((struct check_args *)target)->json = 1;
    return 0;
}

static const struct args_option options[] = {
    {"json", NULL, "one JSON object a model and line", set_json},
    {NULL, NULL, NULL, NULL},
};

/* ---- parts ---- */

static void dtypes_add(json_t *part, const struct tensors *t)
{
    json_t *list = json_array();
    size_t bytes = 0;
    int seen[TENSOR_OTHER + 1] = {0};
    for (size_t i = 0; i < tensors_count(t); i++) {
        const struct tensor_view *v = tensors_at(t, i);
        bytes += v->bytes;
        if (!seen[v->dtype]++)
            json_array_append_new(list, json_string(tensor_dtype_name(v->dtype)));
    }
    json_object_set_new(part, "dtypes", list);
    json_object_set_new(part, "bytes", json_integer((json_int_t)bytes));
}

static int is_read(const struct tensors *t, const char *path)
{
    for (size_t i = 0; t && i < tensors_files(t); i++)
        if (strcmp(tensors_file_path(t, i), path) == 0) return 1;
    return 0;
}

/* Tensor files beside those that are read: variants, other formats. */
static int is_tensor_file(const struct dirent *d)
{
    static const char *const ends[] = {".safetensors", ".bin", ".ckpt", ".pt", ".pth"};
    size_t n = strlen(d->d_name);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        size_t e = strlen(ends[i]);
        if (n > e && strcmp(d->d_name + n - e, ends[i]) == 0) return 1;
    }
    return 0;
}

static void others_add(json_t *part, const struct folder *f, const char *name,
                       const struct tensors *t)
{
    char dir[FOLDER_PATH_BYTES], path[2 * FOLDER_PATH_BYTES];
    struct dirent **found;
    json_t *list = json_array();
    folder_path(dir, f, name, ".");
    dir[strlen(dir) - 2] = 0;
    int count = scandir(dir, &found, is_tensor_file, alphasort);
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, found[i]->d_name);
        if (!is_read(t, path)) json_array_append_new(list, json_string(found[i]->d_name));
        free(found[i]);
    }
    if (count >= 0) free(found);
    json_object_set_new(part, "not_read", list);
}

/* Each part by itself, so that all that is missing is told at once. */
static json_t *parts_report(const struct folder *f)
{
    json_t *list = json_array();
    for (size_t i = 0; i < MODEL_FILE_PARTS; i++) {
        const char *name = model_file_part_name(i), *class_name = folder_class(f, name);
        char source[2 * FOLDER_PATH_BYTES], path[FOLDER_PATH_BYTES];
        struct steer_error err = {0};
        struct tensors *t = NULL;
        json_t *config = NULL;
        if (!class_name) continue;
        folder_source(source, f, name);
        json_t *part =
            json_pack("{s:s, s:s, s:s}", "part", name, "class", class_name, "from", source);
        int code = folder_config(&config, f, name, path, &err);
        if (!code) code = folder_tensors(&t, f, name, &err);
        if (!code) dtypes_add(part, t);
        if (code) json_object_set_new(part, "error", json_string(err.text));
        others_add(part, f, name, t);
        json_array_append_new(list, part);
        json_decref(config);
        tensors_close(t);
    }
    return list;
}

static json_t *loras_report(const struct model_file *file)
{
    json_t *list = json_array();
    for (size_t i = 0; file && i < file->loras_count; i++)
        json_array_append_new(list, json_pack("{s:s, s:f}", "file", file->loras[i].path, "weight",
                                              file->loras[i].weight));
    return list;
}

/* ---- memory ---- */

/* The plans of one image at the default size, by the default recipe, as a worker would make them
 * for a job that names nothing: counted as its budget counts them, and not allocated. */
static json_t *memory_of(const char *path, const struct machine_args *machine,
                         Steerfarm__Precision precision, enum compute_weights weights)
{
    static char prompt[] = "a photograph";
    struct session s = {.host = {.counting = 1}};
    struct machine_args m = *machine;
    struct job_args j;
    struct job_plan plan;
    struct pipeline_plans plans;
    struct steer_error err = {0};
    m.memory_bytes = SIZE_MAX;
    m.weights = weights;
    job_args_init(&j);
    j.job.prompt = prompt;
    j.job.has_precision = 1;
    j.job.precision = precision;
    int code = session_open(&s, path, &m, &j, 1, &err);
    if (!code) code = session_plan(&s, 0, &plan, &err);
    if (!code) code = pipeline_plans(s.pipeline, &plan.shape, &plan.image, 1, &plans, &err);
    json_t *ret = NULL;
    if (code) {
        ret = json_pack("{s:s}", "error", err.text);
    } else {
        size_t used = plan_bytes(plans.text) + plan_bytes(plans.denoise) + plan_bytes(plans.decode);
        if (plans.second) used += plan_bytes(plans.second);
        for (int i = 0; plans.encoders[i]; i++)
            used += plan_bytes(plans.encoders[i]);
        ret = json_pack("{s:I, s:I, s:I}", "bytes", (json_int_t)s.host.bytes_most, "weights",
                        (json_int_t)(s.host.bytes - used), "plans", (json_int_t)used);
    }
    session_close(&s);
    return ret;
}

static json_t *memory_report(const char *path, const struct machine_args *machine)
{
    size_t allowed = machine->memory_bytes ? machine->memory_bytes : compute_memory_allowed();
    const enum compute_weights as_computed = WEIGHTS_AS_COMPUTED;
    return json_pack("{s:o, s:o, s:o, s:I}", "f32",
                     memory_of(path, machine, STEERFARM__PRECISION__F32, as_computed), "bf16",
                     memory_of(path, machine, STEERFARM__PRECISION__BF16, as_computed), "int8",
                     memory_of(path, machine, STEERFARM__PRECISION__AUTO, WEIGHTS_INT8), "allowed",
                     (json_int_t)allowed);
}

/* ---- one model ---- */

static json_t *recipes_report(const struct model *m)
{
    json_t *list = json_array();
    Steerfarm__Model *offer = offer_make(m);
    for (size_t i = 0; offer && i < offer->n_recipes; i++)
        json_array_append_new(list, json_string(offer->recipes[i]->name));
    offer_free(offer);
    return list;
}

static json_t *report_make(const struct check_args *a, const char *path, struct steer_error *err)
{
    json_t *report = json_pack("{s:s}", "path", path);
    struct folder f;
    struct model *m = NULL;
    struct recipe own;
    int code = folder_open(&f, path, err);
    if (!code) {
        json_object_set_new(report, "parts", parts_report(&f));
        json_object_set_new(report, "loras", loras_report(f.file));
        if (f.file && *f.file->mean_latent)
            json_object_set_new(report, "mean_latent", json_string(f.file->mean_latent));
    }
    folder_close(&f);
    if (!code) code = model_inspect(&m, path, err);
    if (!code) {
        json_t *what =
            json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:s, s:o}", "model", m->name, "hash",
                      m->hash, "family", m->family->name, "width", m->width, "height", m->height,
                      "size_multiple", m->multiple, "text_tokens", m->text.tokens, "recipe",
                      m->default_recipe, "recipes", recipes_report(m));
        json_object_update(report, what);
        json_decref(what);
        code = model_recipe(m, NULL, &own, err);
    }
    if (!code) json_object_set_new(report, "memory", memory_report(path, &a->machine));
    if (code)
        json_object_set_new(
            report, "error",
            json_pack("{s:s, s:s}", "code", steer_code_name(code), "text", err->text));
    model_close(m);
    return report;
}

/* ---- in words ---- */

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static double megabytes(const json_t *object, const char *key)
{
    return 1e-6 * (double)json_integer_value(json_object_get(object, key));
}

static void list_print(const char *before, const json_t *list, const char *except)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *text = json_string_value(json_array_get(list, i));
        if (strcmp(text, except) == 0) continue;
        printf("%s%s", before, text);
        before = ", ";
    }
}

static void part_print(const json_t *part)
{
    printf("  %-15s %s", text_of(part, "part"), text_of(part, "class"));
    if (*text_of(part, "error")) {
        printf(": %s", text_of(part, "error"));
    } else {
        printf(", %.1f MB", megabytes(part, "bytes"));
        list_print(", ", json_object_get(part, "dtypes"), "");
        printf(", %s", text_of(part, "from"));
    }
    list_print("; not read: ", json_object_get(part, "not_read"), "");
    putchar('\n');
}

static void memory_print(const json_t *memory)
{
    static const char *const precisions[] = {"f32", "bf16", "int8"};
    for (int i = 0; i < 3; i++) {
        const json_t *m = json_object_get(memory, precisions[i]);
        if (*text_of(m, "error"))
            printf("  memory %-8s %s\n", precisions[i], text_of(m, "error"));
        else
            printf("  memory %-8s %.1f MB: weights %.1f, plans %.1f, the rest while packing; %s "
                   "the %.1f MB of this machine\n",
                   precisions[i], megabytes(m, "bytes"), megabytes(m, "weights"),
                   megabytes(m, "plans"),
                   megabytes(m, "bytes") > megabytes(memory, "allowed") ? "MORE THAN" : "within",
                   megabytes(memory, "allowed"));
    }
}

static void report_print(const json_t *r)
{
    const json_t *part;
    size_t i;
    printf("%s\n", text_of(r, "path"));
    if (*text_of(r, "family"))
        printf(
            "  model           %s, family %s, %lldx%lld, sizes in multiples of %lld, %lld tokens "
            "of text, hash %s\n",
            text_of(r, "model"), text_of(r, "family"),
            json_integer_value(json_object_get(r, "width")),
            json_integer_value(json_object_get(r, "height")),
            json_integer_value(json_object_get(r, "size_multiple")),
            json_integer_value(json_object_get(r, "text_tokens")), text_of(r, "hash"));
    json_array_foreach(json_object_get(r, "parts"), i, part) part_print(part);
    json_array_foreach(json_object_get(r, "loras"), i, part)
        printf("  lora            %s, weight %g\n", text_of(part, "file"),
               json_number_value(json_object_get(part, "weight")));
    if (*text_of(r, "mean_latent")) printf("  mean latent     %s\n", text_of(r, "mean_latent"));
    if (*text_of(r, "recipe")) {
        printf("  recipe          %s", text_of(r, "recipe"));
        list_print("; also fit: ", json_object_get(r, "recipes"), text_of(r, "recipe"));
        putchar('\n');
    }
    memory_print(json_object_get(r, "memory"));
    const json_t *error = json_object_get(r, "error");
    if (error) printf("  refused         %s\n", text_of(error, "text"));
}

static int check_one(void *data, const char *path)
{
    struct check_args *a = data;
    struct steer_error err = {0};
    json_t *report = report_make(a, path, &err);
    if (a->json) {
        json_dumpf(report, stdout, JSON_COMPACT);
        putchar('\n');
    } else {
        report_print(report);
    }
    json_decref(report);
    if (err.code && !a->first.code) a->first = err;
    a->models++;
    return 0;
}

int command_check(int argc, char **argv, struct steer_error *err)
{
    struct check_args a = {.json = 0};
    int words, help;
    machine_args_init(&a.machine);
    const struct args_group groups[] = {{"Check", options, &a},
                                        {"Machine", machine_args_options, &a.machine},
                                        {"Memory", residence_args_options, &a.machine},
                                        {NULL, NULL, NULL}};
    int code = args_parse(groups, argc, argv, &words, &help, err);
    if (code) return code;
    if (help) {
        printf("steer-worker check DIR|FILE.json [options]\n\n"
               "What a model is: family, parts, recipes that fit, memory in each precision, and\n"
               "what serving would refuse it for. DIR may be a folder of models. The exit code is\n"
               "0 when all of them can be served.\n\n"
               "Memory is for one image of the default size by the default recipe, as --memory\n"
               "counts it: packed weights and plans, all held at once (with --text-resident no\n"
               "without the text encoders, which are held before). f32, bf16: --precision; int8:\n"
               "--weights int8 in the best precision here.\n");
        args_help(stdout, groups);
        args_help_exits(stdout);
        return 0;
    }
    if (words != 1)
        return steer_fail(err, STEER_USAGE, "expected one model folder or file (see --help)");
    code = models_scan(argv[0], check_one, &a, err);
    /* What is no model at all is told as serving or rendering it would. */
    if (!code && !a.models) code = check_one(&a, argv[0]);
    if (code || !a.first.code) return code;
    *err = a.first;
    return err->code;
}
