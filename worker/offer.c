// SPDX-License-Identifier: Apache-2.0
#include "offer.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "model_file.h"
#include "wire.h"

/* Built with malloc as protobuf-c's own unpacking would, so that its free fits. */

static Steerfarm__Guidance *guidance_offer(const struct guidance *g, int joint)
{
    static const Steerfarm__Method methods[] = {
        [GUIDANCE_NONE] = STEERFARM__METHOD__NONE,
        [GUIDANCE_NASA] = STEERFARM__METHOD__NASA,
        [GUIDANCE_NAG] = STEERFARM__METHOD__NAG,
        [GUIDANCE_VSF] = STEERFARM__METHOD__VSF,
    };
    Steerfarm__Guidance *o = malloc(sizeof *o);
    if (!o) return NULL;
    steerfarm__guidance__init(o);
    o->has_method = o->has_alpha = o->has_phi = o->has_tau = o->has_beta = o->has_offset =
        o->has_guidance_scale = 1;
    o->method = methods[g->method];
    o->alpha = g->alpha;
    o->phi = g->phi;
    o->tau = g->tau;
    o->beta = g->beta;
    o->offset = g->offset;
    o->guidance_scale = g->scale;
    o->has_nasa_variant = joint;
    o->nasa_variant = (Steerfarm__NasaVariant)g->variant;
    return o;
}

static Steerfarm__Recipe *recipe_new(const struct recipe *r, int joint)
{
    Steerfarm__Recipe *o = malloc(sizeof *o);
    if (!o) return NULL;
    steerfarm__recipe__init(o);
    o->name = strdup(r->name);
    o->guidance = guidance_offer(&r->guidance, joint);
    o->negative_prompt = *r->negative_prompt ? strdup(r->negative_prompt) : NULL;
    o->has_steps = o->has_steps_min = o->has_steps_max = 1;
    o->steps = (uint32_t)r->steps;
    o->steps_min = (uint32_t)r->steps_min;
    o->steps_max = (uint32_t)r->steps_max;
    if (o->name && o->guidance && (o->negative_prompt || !*r->negative_prompt)) return o;
    steerfarm__recipe__free_unpacked(o, NULL);
    return NULL;
}

static int recipe_add(Steerfarm__Model *offer, const struct recipe *r)
{
    Steerfarm__Recipe *o = recipe_new(r, offer->joint_attention);
    if (!o) return STEER_NO_MEMORY;
    offer->recipes[offer->n_recipes++] = o;
    return 0;
}

struct offering {
    const struct model *m;
    Steerfarm__Model *offer;
    int failed;
};

static void recipe_offer(void *data, const char *name)
{
    struct offering *to = data;
    struct recipe r;
    struct steer_error err = {0};
    for (size_t i = 0; i < to->offer->n_recipes; i++)
        if (strcmp(to->offer->recipes[i]->name, name) == 0) return;
    if (to->failed || to->offer->n_recipes == STEER_RECIPES_MAX) return;
    if (!wire_utf8_valid(name, strlen(name))) return;
    if (model_recipe(to->m, name, &r, &err))
        log_event(LOG_DEBUG, "recipe.left_out", "model=%s recipe=%s reason=%s",
                  log_quote(to->m->name), log_quote(name), log_quote(err.text));
    else
        to->failed = recipe_add(to->offer, &r);
}

/* Everything but the recipes. */
static Steerfarm__Model *offer_new(const struct model *m)
{
    Steerfarm__Model *o = malloc(sizeof *o);
    if (!o) return NULL;
    steerfarm__model__init(o);
    o->name = strdup(m->name);
    o->hash = strdup(m->hash);
    o->family = strdup(m->family->name);
    o->recipes = calloc(STEER_RECIPES_MAX, sizeof *o->recipes);
    o->precisions = calloc(2, sizeof *o->precisions);
    if (!o->name || !o->hash || !o->family || !o->recipes || !o->precisions) {
        offer_free(o);
        return NULL;
    }
    o->has_width = o->has_height = o->has_size_multiple = o->has_side_max = o->has_pixels_max =
        o->has_text_tokens_max = o->has_memory_bytes = 1;
    o->width = (uint32_t)m->width;
    o->height = (uint32_t)m->height;
    o->size_multiple = (uint32_t)m->multiple;
    o->side_max = STEER_SIDE_MAX;
    o->pixels_max = STEER_PIXELS_MAX;
    o->text_tokens_max = (uint32_t)m->text.tokens;
    o->memory_bytes = m->tensor_bytes;
    o->has_joint_attention = 1;
    o->joint_attention = m->family->joint_attention;
    o->precisions[o->n_precisions++] = STEERFARM__PRECISION__F32;
    if (compute_bf16_native()) o->precisions[o->n_precisions++] = STEERFARM__PRECISION__BF16;
    return o;
}

Steerfarm__Model *offer_make(const struct model *m)
{
    struct offering to = {m, offer_new(m), 0};
    if (!to.offer) return NULL;
    recipe_offer(&to, m->default_recipe);
    recipe_list(recipe_offer, &to);
    if (!to.failed && to.offer->n_recipes) return to.offer;
    offer_free(to.offer);
    return NULL;
}

Steerfarm__Model *offer_make_one(const struct model *m, const struct recipe *r)
{
    Steerfarm__Model *o = offer_new(m);
    if (!o || !recipe_add(o, r)) return o;
    offer_free(o);
    return NULL;
}

void offer_free(Steerfarm__Model *offer)
{
    if (offer) steerfarm__model__free_unpacked(offer, NULL);
}

/* ---- folders ---- */

static int left_out(const char *path, const char *reason)
{
    log_event(LOG_WARN, "model.left_out", "path=%s reason=%s", log_quote(path), log_quote(reason));
    return 0;
}

static int offers_add(void *data, const char *path)
{
    struct offers *o = data;
    struct steer_error err = {0};
    struct model *m;
    if (o->count == STEER_MODELS_MAX) return 0;
    /* One name that the wire cannot carry would make the whole HELLO invalid. */
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    size_t length = strlen(base) - (model_file_is(path) ? strlen(".json") : 0);
    if (length > STEER_NAME_BYTES_MAX || !wire_utf8_valid(base, strlen(base)))
        return left_out(path, "a model's name is at most 128 bytes of UTF-8");
    struct recipe own;
    int code = model_inspect(&m, path, &err);
    if (!code && (code = model_recipe(m, NULL, &own, &err))) model_close(m);
    if (code) return left_out(path, err.text);
    Steerfarm__Model *offer = offer_make(m);
    char *copy = strdup(path);
    model_close(m);
    int taken = offer && offers_path(o, offer->name);
    if (offer && o->weights == WEIGHTS_INT8 && !(offer->weights = strdup("int8"))) {
        offer_free(offer);
        offer = NULL;
    }
    if (!offer || !copy || taken) {
        offer_free(offer);
        free(copy);
        return taken ? left_out(path, "another model of this name was there first")
                     : STEER_NO_MEMORY;
    }
    o->models[o->count] = offer;
    o->paths[o->count++] = copy;
    return 0;
}

static int is_model(const char *path)
{
    char index[1100];
    snprintf(index, sizeof index, "%s/model_index.json", path);
    return model_file_is(path) || access(index, F_OK) == 0;
}

static int not_hidden(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

int models_scan(const char *dir, int (*each)(void *data, const char *path), void *data,
                struct steer_error *err)
{
    struct dirent **names = NULL;
    int code = 0, count = 0;
    if (is_model(dir))
        code = each(data, dir);
    else if ((count = scandir(dir, &names, not_hidden, alphasort)) < 0)
        code = steer_fail(err, STEER_NOT_FOUND, "model folder %s: %s", dir, strerror(errno));
    for (int i = 0; i < count; i++) {
        char path[1024];
        int length = snprintf(path, sizeof path, "%s/%s", dir, names[i]->d_name);
        if (!code && length < (int)sizeof path && is_model(path)) code = each(data, path);
        free(names[i]);
    }
    free(names);
    return code;
}

int offers_scan(struct offers *o, const char *dir, struct steer_error *err)
{
    size_t before = o->count;
    if (!o->models) o->models = calloc(STEER_MODELS_MAX, sizeof *o->models);
    if (!o->paths) o->paths = calloc(STEER_MODELS_MAX, sizeof *o->paths);
    if (!o->models || !o->paths) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    int code = models_scan(dir, offers_add, o, err);
    if (!code && o->count == before)
        code = steer_fail(
            err, STEER_NOT_FOUND,
            "no model in %s: expected folders with a model_index.json, or model files", dir);
    if (code && err && !err->code) steer_fail(err, code, "out of memory");
    return code;
}

void offers_free(struct offers *o)
{
    for (size_t i = 0; i < o->count; i++) {
        offer_free(o->models[i]);
        free(o->paths[i]);
    }
    free(o->models);
    free(o->paths);
    *o = (struct offers){0};
}

const char *offers_path(const struct offers *o, const char *name)
{
    for (size_t i = 0; i < o->count; i++)
        if (strcmp(o->models[i]->name, name) == 0) return o->paths[i];
    return NULL;
}
