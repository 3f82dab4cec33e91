// SPDX-License-Identifier: Apache-2.0
/* Configurations: one JSON object with the parts' objects in it,
 *
 *     {"unet": {...}, "pixart": {...}, "flux": {...}, "clip": {...}, "t5": {...}, "vae": {...},
 *      "scheduler": {...}, "recipe": {...}, "model_file": {...}}
 *
 * What a loader accepts is recorded against a tensor file that has nothing in it, and sampled: any
 * size that a configuration may ask for must be refused or stay bounded. */
#include <string.h>

#include "fuzz.h"
#include "json.h"
#include "model/clip.h"
#include "model/flux.h"
#include "model/pixart.h"
#include "model/t5.h"
#include "model/unet.h"
#include "model/vae.h"
#include "model_file.h"
#include "recipe.h"
#include "safetensors.h"

static struct net net_open(void)
{
    static const uint8_t empty[] = {2, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    fuzz_file("empty.safetensors", empty, sizeof empty);
    struct tensors *files = NULL;
    struct net n = {0};
    int code = tensors_open(&files, "empty.safetensors", NULL);
    FUZZ_ASSERT(!code);
    code = params_new(&n.params, NULL, &files);
    FUZZ_ASSERT(!code);
    n.graph = graph_new();
    FUZZ_ASSERT(n.graph);
    return n;
}

static void net_close(struct net *n)
{
    struct steer_error err = {0};
    int code = params_error(n->params, &err);
    FUZZ_ASSERT(code && err.text[0]); /* nothing is in the file */
    graph_free(n->graph);
    params_free(n->params);
}

/* As a family does it: what it adds up to is checked beside the other parts. */
static void record_unet(const struct unet_config *c)
{
    static struct denoiser_graph denoiser;
    struct denoiser_size size = {.batch = 1,
                                 .height = 9,
                                 .width = 13,
                                 .tokens_positive = 77,
                                 .tokens_negative = 60,
                                 .method = GUIDANCE_NASA,
                                 .channels = c->in_channels,
                                 .guidance_channels = c->guidance_channels};
    if (c->added_channels > 6 * c->added_time_channels) size.sizes = 6;
    if (c->added_channels && !size.sizes) return;
    struct net n = net_open();
    denoiser_graph_begin(&denoiser, n.graph, &size);
    unet_record(&denoiser, &n, c, &size);
    net_close(&n);
}

static void record_pixart(const struct pixart_config *c)
{
    static struct denoiser_graph denoiser;
    static struct text_graph text;
    struct denoiser_size size = {.batch = 1,
                                 .height = 3 * c->patch,
                                 .width = 2 * c->patch,
                                 .tokens_positive = 77,
                                 .tokens_negative = 77,
                                 .method = GUIDANCE_NASA,
                                 .channels = c->in_channels,
                                 .sizes = c->conditions ? PIXART_SIZES : 0};
    struct text_size states = {77, c->caption_channels ? c->caption_channels : c->cross_channels, 0,
                               1};
    struct net n = net_open();
    denoiser_graph_begin(&denoiser, n.graph, &size);
    pixart_record(&denoiser, &n, c, &size);
    text_graph_begin(&text, n.graph, &states);
    pixart_record_text(&text, &n, c);
    net_close(&n);
}

static void record_flux(const struct flux_config *c)
{
    static struct denoiser_graph denoiser;
    static struct text_graph text;
    struct denoiser_size size = {.batch = 1,
                                 .height = 3 * FLUX_PATCH,
                                 .width = 2 * FLUX_PATCH,
                                 .tokens_positive = 77,
                                 .tokens_negative = 60,
                                 .method = GUIDANCE_NASA,
                                 .variant = GUIDANCE_JOINT,
                                 .channels = c->latent_channels};
    struct text_size states = {77, c->text_channels, c->pooled_channels, 0};
    struct net n = net_open();
    denoiser_graph_begin(&denoiser, n.graph, &size);
    flux_record(&denoiser, &n, c, &size);
    text_graph_begin(&text, n.graph, &states);
    flux_record_text(&text, &n, c);
    net_close(&n);
}

static void sample(const json_t *all)
{
    struct recipe recipe;
    struct steer_error err = {0};
    struct schedule *schedule = NULL;
    const json_t *own = json_object_get(all, "recipe"),
                 *scheduler = json_object_get(all, "scheduler");
    if (!json_is_object(own) || json_dump_file(own, "./fuzz.json", 0)) return;
    struct recipe_folder folder = {.scheduler = json_is_object(scheduler) ? scheduler : NULL,
                                   .scheduler_file = "scheduler_config.json",
                                   .joint_attention = 1,
                                   .old_rules = json_is_true(json_object_get(all, "old_rules"))};
    if (recipe_load(&recipe, "./fuzz.json", &folder, &err)) {
        FUZZ_ASSERT(err.text[0]);
        return;
    }
    FUZZ_ASSERT(recipe.steps >= recipe.steps_min && recipe.steps <= recipe.steps_max);
    if (schedule_new(&schedule, &recipe.sampler, recipe.steps, &err) == 0)
        FUZZ_ASSERT(schedule_calls(schedule) >= 1);
    schedule_free(schedule);
}

static void put_together(const json_t *object)
{
    struct model_file *f = NULL;
    struct steer_error err = {0};
    if (json_dump_file(object, "./model.json", 0)) return;
    int code = model_file_load(&f, "./model.json", &err);
    FUZZ_ASSERT(code ? !f && err.text[0] : *f->base && f->loras_count <= MODEL_FILE_LORAS_MAX);
    free(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *all = NULL;
    if (json_bytes_load(&all, (const char *)data, size, "fuzz", NULL)) return 0;
    const json_t *part;
    if (json_is_object(part = json_object_get(all, "clip"))) {
        struct clip_config config;
        if (clip_config_load(&config, part, "clip", NULL) == 0) {
            struct net n = net_open();
            struct encoder_graph graph;
            clip_record(&graph, &n, &config, config.positions, STATES_PENULTIMATE,
                        POOLED_PROJECTED);
            net_close(&n);
        }
    }
    if (json_is_object(part = json_object_get(all, "t5"))) {
        struct t5_config config;
        if (t5_config_load(&config, part, "t5", NULL) == 0) {
            struct net n = net_open();
            struct encoder_graph graph = ENCODER_GRAPH_NONE;
            t5_record(&graph, &n, &config, 120, 1);
            net_close(&n);
            for (int behind = -300; behind <= 300; behind++) {
                int bucket = t5_bucket(&config, behind);
                FUZZ_ASSERT(bucket >= 0 && bucket < config.buckets);
            }
        }
    }
    if (json_is_object(part = json_object_get(all, "pixart"))) {
        struct pixart_config config;
        if (pixart_config_load(&config, part, "pixart", NULL) == 0) record_pixart(&config);
    }
    if (json_is_object(part = json_object_get(all, "flux"))) {
        struct flux_config config;
        if (flux_config_load(&config, part, "flux", NULL) == 0) record_flux(&config);
    }
    if (json_is_object(part = json_object_get(all, "unet"))) {
        struct unet_config config;
        if (unet_config_load(&config, part, "unet", NULL) == 0) record_unet(&config);
    }
    if (json_is_object(part = json_object_get(all, "vae"))) {
        struct vae_config config;
        const char *class_name = json_string_value(json_object_get(part, "_class_name"));
        if (vae_config_load(&config, part, class_name ? class_name : "AutoencoderKL", "vae",
                            NULL) == 0) {
            struct net n = net_open();
            struct vae_graph graph;
            vae_record(&graph, &n, &config, (struct shape){1, 9, 13, 0});
            net_close(&n);
        }
    }
    if (json_is_object(part = json_object_get(all, "model_file"))) put_together(part);
    sample(all);
    json_decref(all);
    return 0;
}
