// SPDX-License-Identifier: Apache-2.0
#include "offer.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
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
    o->memory_bytes = m->file_bytes;
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

static int offers_add(struct offers *o, const char *dir)
{
    struct steer_error err = {0};
    struct model *m;
    if (o->count == STEER_MODELS_MAX) return 0;
    /* One name that the wire cannot carry would make the whole HELLO invalid. */
    const char *slash = strrchr(dir, '/'), *base = slash ? slash + 1 : dir;
    if (strlen(base) > STEER_NAME_BYTES_MAX || !wire_utf8_valid(base, strlen(base))) {
        log_event(LOG_WARN, "model.left_out", "dir=%s reason=%s", log_quote(dir),
                  log_quote("a model's name is at most 128 bytes of UTF-8"));
        return 0;
    }
    struct recipe own;
    int code = model_inspect(&m, dir, &err);
    if (!code && (code = model_recipe(m, NULL, &own, &err))) model_close(m);
    if (code) {
        log_event(LOG_WARN, "model.left_out", "dir=%s reason=%s", log_quote(dir),
                  log_quote(err.text));
        return 0;
    }
    Steerfarm__Model *offer = offer_make(m);
    char *copy = strdup(dir);
    model_close(m);
    if (offer && copy && offers_dir(o, offer->name)) {
        log_event(LOG_WARN, "model.left_out", "dir=%s reason=%s", log_quote(dir),
                  log_quote("another folder of this name was there first"));
        offer_free(offer);
        free(copy);
        return 0;
    }
    if (!offer || !copy) {
        offer_free(offer);
        free(copy);
        return STEER_NO_MEMORY;
    }
    o->models[o->count] = offer;
    o->dirs[o->count++] = copy;
    return 0;
}

static int is_model(const char *dir)
{
    char path[1100];
    snprintf(path, sizeof path, "%s/model_index.json", dir);
    return access(path, F_OK) == 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int not_hidden(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

int offers_scan(struct offers *o, const char *dir, struct steer_error *err)
{
    struct dirent **names = NULL;
    int code = 0, count = 0;
    size_t before = o->count;
    if (!o->models) o->models = calloc(STEER_MODELS_MAX, sizeof *o->models);
    if (!o->dirs) o->dirs = calloc(STEER_MODELS_MAX, sizeof *o->dirs);
    if (!o->models || !o->dirs) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    if (is_model(dir)) {
        code = offers_add(o, dir);
    } else {
        count = scandir(dir, &names, not_hidden, by_name);
        if (count < 0)
            code = steer_fail(err, STEER_NOT_FOUND, "model folder %s: %s", dir, strerror(errno));
    }
    for (int i = 0; i < count; i++) {
        char path[1024];
        int length = snprintf(path, sizeof path, "%s/%s", dir, names[i]->d_name);
        if (!code && length < (int)sizeof path && is_model(path)) code = offers_add(o, path);
        free(names[i]);
    }
    free(names);
    if (!code && o->count == before)
        code = steer_fail(err, STEER_NOT_FOUND,
                          "no model in %s: expected folders with a model_index.json", dir);
    if (code && err && !err->code) steer_fail(err, code, "out of memory");
    return code;
}

void offers_free(struct offers *o)
{
    for (size_t i = 0; i < o->count; i++) {
        offer_free(o->models[i]);
        free(o->dirs[i]);
    }
    free(o->models);
    free(o->dirs);
    *o = (struct offers){0};
}

const char *offers_dir(const struct offers *o, const char *name)
{
    for (size_t i = 0; i < o->count; i++)
        if (strcmp(o->models[i]->name, name) == 0) return o->dirs[i];
    return NULL;
}
