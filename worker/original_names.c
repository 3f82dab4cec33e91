// SPDX-License-Identifier: Apache-2.0
/* The tables say what diffusers' loaders/single_file_utils.py does, read from there. */
#include "original_names.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the numbers of a name become. */
enum counting {
    COUNT_SAME,
    COUNT_DOWN,   /* an input block: its level and its layer there */
    COUNT_UP,     /* an output block: likewise */
    COUNT_VAE_UP, /* a level counted from the other end; a layer as it is */
};

/* '#' stands for a number. The rule with the longest `theirs` must come first where two begin
 * alike. inner translates what follows. */
struct rule {
    const char *theirs, *ours;
    enum counting counting;
    enum original_form form;
    const struct rule *inner;
    const char *parts[ORIGINAL_PARTS_MAX]; /* appended to ours, each; NULL: ours alone */
};

/* clang-format off */
#define IS(a, b)      {.theirs = a, .ours = b}
#define AS(a, b, ...) {.theirs = a, .ours = b, __VA_ARGS__}
/* clang-format on */

static const struct rule unet_resnet[] = {
    IS("in_layers.0", "norm1"),
    IS("in_layers.2", "conv1"),
    IS("out_layers.0", "norm2"),
    IS("out_layers.3", "conv2"),
    IS("emb_layers.1", "time_emb_proj"),
    IS("skip_connection", "conv_shortcut"),
    {0},
};

static const struct rule unet[] = {
    IS("time_embed.0", "time_embedding.linear_1"),
    IS("time_embed.2", "time_embedding.linear_2"),
    IS("time_embed.cond_proj", "time_embedding.cond_proj"),
    IS("label_emb.0.0", "add_embedding.linear_1"),
    IS("label_emb.0.2", "add_embedding.linear_2"),
    IS("input_blocks.0.0", "conv_in"),
    AS("input_blocks.#.0.op", "down_blocks.#.downsamplers.0.conv", .counting = COUNT_DOWN),
    AS("input_blocks.#.0", "down_blocks.#.resnets.#", .counting = COUNT_DOWN, .inner = unet_resnet),
    AS("input_blocks.#.1", "down_blocks.#.attentions.#", .counting = COUNT_DOWN),
    AS("middle_block.0", "mid_block.resnets.0", .inner = unet_resnet),
    IS("middle_block.1", "mid_block.attentions.0"),
    AS("middle_block.2", "mid_block.resnets.1", .inner = unet_resnet),
    AS("output_blocks.#.1.conv", "up_blocks.#.upsamplers.0.conv", .counting = COUNT_UP),
    AS("output_blocks.#.2.conv", "up_blocks.#.upsamplers.0.conv", .counting = COUNT_UP),
    AS("output_blocks.#.0", "up_blocks.#.resnets.#", .counting = COUNT_UP, .inner = unet_resnet),
    AS("output_blocks.#.1", "up_blocks.#.attentions.#", .counting = COUNT_UP),
    IS("out.0", "conv_norm_out"),
    IS("out.2", "conv_out"),
    {0},
};

static const struct rule vae_resnet[] = {
    IS("norm1", "norm1"),
    IS("conv1", "conv1"),
    IS("norm2", "norm2"),
    IS("conv2", "conv2"),
    IS("nin_shortcut", "conv_shortcut"),
    {0},
};

static const struct rule vae_attention[] = {
    IS("norm", "group_norm"),
    AS("q", "to_q", .form = FORM_FLAT),
    AS("k", "to_k", .form = FORM_FLAT),
    AS("v", "to_v", .form = FORM_FLAT),
    AS("proj_out", "to_out.0", .form = FORM_FLAT),
    {0},
};

static const struct rule vae[] = {
    IS("quant_conv", "quant_conv"),
    IS("post_quant_conv", "post_quant_conv"),
    IS("encoder.conv_in", "encoder.conv_in"),
    IS("encoder.conv_out", "encoder.conv_out"),
    IS("encoder.norm_out", "encoder.conv_norm_out"),
    AS("encoder.mid.block_1", "encoder.mid_block.resnets.0", .inner = vae_resnet),
    AS("encoder.mid.attn_1", "encoder.mid_block.attentions.0", .inner = vae_attention),
    AS("encoder.mid.block_2", "encoder.mid_block.resnets.1", .inner = vae_resnet),
    AS("encoder.down.#.block.#", "encoder.down_blocks.#.resnets.#", .inner = vae_resnet),
    IS("encoder.down.#.downsample.conv", "encoder.down_blocks.#.downsamplers.0.conv"),
    IS("decoder.conv_in", "decoder.conv_in"),
    IS("decoder.conv_out", "decoder.conv_out"),
    IS("decoder.norm_out", "decoder.conv_norm_out"),
    AS("decoder.mid.block_1", "decoder.mid_block.resnets.0", .inner = vae_resnet),
    AS("decoder.mid.attn_1", "decoder.mid_block.attentions.0", .inner = vae_attention),
    AS("decoder.mid.block_2", "decoder.mid_block.resnets.1", .inner = vae_resnet),
    AS("decoder.up.#.block.#", "decoder.up_blocks.#.resnets.#", .counting = COUNT_VAE_UP,
       .inner = vae_resnet),
    AS("decoder.up.#.upsample.conv", "decoder.up_blocks.#.upsamplers.0.conv",
       .counting = COUNT_VAE_UP),
    {0},
};

#define LAYER "text_model.encoder.layers.#."
static const struct rule open_clip[] = {
    IS("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    IS("token_embedding", "text_model.embeddings.token_embedding"),
    IS("ln_final", "text_model.final_layer_norm"),
    AS("text_projection", "text_projection.weight", .form = FORM_TRANSPOSED),
    IS("transformer.resblocks.#.ln_1", LAYER "layer_norm1"),
    IS("transformer.resblocks.#.ln_2", LAYER "layer_norm2"),
    AS("transformer.resblocks.#.attn.in_proj_weight", LAYER "self_attn.",
       .parts = {"q_proj.weight", "k_proj.weight", "v_proj.weight"}),
    AS("transformer.resblocks.#.attn.in_proj_bias", LAYER "self_attn.",
       .parts = {"q_proj.bias", "k_proj.bias", "v_proj.bias"}),
    IS("transformer.resblocks.#.attn.out_proj", LAYER "self_attn.out_proj"),
    IS("transformer.resblocks.#.mlp.c_fc", LAYER "mlp.fc1"),
    IS("transformer.resblocks.#.mlp.c_proj", LAYER "mlp.fc2"),
    {0},
};

#define DOUBLE "transformer_blocks.#."
#define SINGLE "single_transformer_blocks.#."
static const struct rule flux[] = {
    IS("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    IS("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    IS("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    IS("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    IS("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
    IS("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    IS("txt_in", "context_embedder"),
    IS("img_in", "x_embedder"),
    IS("double_blocks.#.img_mod.lin", DOUBLE "norm1.linear"),
    IS("double_blocks.#.txt_mod.lin", DOUBLE "norm1_context.linear"),
    AS("double_blocks.#.img_attn.qkv", DOUBLE "attn.", .parts = {"to_q", "to_k", "to_v"}),
    AS("double_blocks.#.txt_attn.qkv", DOUBLE "attn.",
       .parts = {"add_q_proj", "add_k_proj", "add_v_proj"}),
    IS("double_blocks.#.img_attn.norm.query_norm.scale", DOUBLE "attn.norm_q.weight"),
    IS("double_blocks.#.img_attn.norm.key_norm.scale", DOUBLE "attn.norm_k.weight"),
    IS("double_blocks.#.txt_attn.norm.query_norm.scale", DOUBLE "attn.norm_added_q.weight"),
    IS("double_blocks.#.txt_attn.norm.key_norm.scale", DOUBLE "attn.norm_added_k.weight"),
    IS("double_blocks.#.img_attn.proj", DOUBLE "attn.to_out.0"),
    IS("double_blocks.#.txt_attn.proj", DOUBLE "attn.to_add_out"),
    IS("double_blocks.#.img_mlp.0", DOUBLE "ff.net.0.proj"),
    IS("double_blocks.#.img_mlp.2", DOUBLE "ff.net.2"),
    IS("double_blocks.#.txt_mlp.0", DOUBLE "ff_context.net.0.proj"),
    IS("double_blocks.#.txt_mlp.2", DOUBLE "ff_context.net.2"),
    IS("single_blocks.#.modulation.lin", SINGLE "norm.linear"),
    AS("single_blocks.#.linear1", SINGLE,
       .parts = {"attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"}),
    IS("single_blocks.#.norm.query_norm.scale", SINGLE "attn.norm_q.weight"),
    IS("single_blocks.#.norm.key_norm.scale", SINGLE "attn.norm_k.weight"),
    IS("single_blocks.#.linear2", SINGLE "proj_out"),
    IS("final_layer.linear", "proj_out"),
    AS("final_layer.adaLN_modulation.1", "norm_out.linear", .form = FORM_SWAPPED),
    {0},
};

static const struct rule *const codes[] = {
    [ORIGINAL_UNET] = unet,
    [ORIGINAL_VAE] = vae,
    [ORIGINAL_OPEN_CLIP] = open_clip,
    [ORIGINAL_FLUX] = flux,
};

/* ---- layouts ---- */

__attribute__((format(printf, 3, 4))) static const struct tensor_view *
find(const struct tensors *t, const char *prefix, const char *format, ...)
{
    char rest[96], name[160];
    va_list args;
    va_start(args, format);
    vsnprintf(rest, sizeof rest, format, args);
    va_end(args);
    snprintf(name, sizeof name, "%s%s", prefix, rest);
    return tensors_find(t, name);
}

static int64_t rows(const struct tensor_view *v)
{
    return v && v->rank ? v->shape[0] : 0;
}

void original_layout_read(struct original_layout *ret, enum original_code code,
                          const struct tensors *t, const char *prefix)
{
    enum { BLOCKS_MAX = 128 };
    *ret = (struct original_layout){.code = code};
    for (int i = 0; i < BLOCKS_MAX && code == ORIGINAL_UNET; i++) {
        if (ret->downs < ORIGINAL_LEVELS_MAX && find(t, prefix, "input_blocks.%d.0.op.weight", i))
            ret->down[ret->downs++] = i;
        if (ret->ups < ORIGINAL_LEVELS_MAX &&
            (find(t, prefix, "output_blocks.%d.1.conv.weight", i) ||
             find(t, prefix, "output_blocks.%d.2.conv.weight", i)))
            ret->up[ret->ups++] = i;
    }
    while (code == ORIGINAL_VAE &&
           find(t, prefix, "decoder.up.%d.block.0.norm1.weight", ret->levels))
        ret->levels++;
    if (code == ORIGINAL_OPEN_CLIP) ret->width = rows(find(t, prefix, "ln_final.weight"));
    if (code == ORIGINAL_FLUX) ret->width = rows(find(t, prefix, "img_in.weight"));
}

void original_layout_of(struct original_layout *ret, enum original_code code,
                        const struct tensors *t)
{
    int down = 1, up = 0; /* input_blocks.0 is conv_in */
    *ret = (struct original_layout){.code = code};
    for (int level = 0; level < ORIGINAL_LEVELS_MAX && code == ORIGINAL_UNET; level++) {
        for (int i = 0; find(t, "", "down_blocks.%d.resnets.%d.conv1.weight", level, i); i++)
            down++;
        if (find(t, "", "down_blocks.%d.downsamplers.0.conv.weight", level))
            ret->down[ret->downs++] = down++;
        for (int i = 0; find(t, "", "up_blocks.%d.resnets.%d.conv1.weight", level, i); i++)
            up++;
        if (find(t, "", "up_blocks.%d.upsamplers.0.conv.weight", level))
            ret->up[ret->ups++] = up - 1;
    }
    if (code == ORIGINAL_FLUX) ret->width = rows(find(t, "", "x_embedder.weight"));
}

/* ---- translation ---- */

enum { NUMBERS_MAX = 2 };

/* What follows the pattern in name; NULL when name is another. */
static const char *match(const char *pattern, const char *name, int *numbers)
{
    int count = 0;
    for (; *pattern; pattern++) {
        if (*pattern == '#') {
            char *end;
            if (!isdigit((unsigned char)*name)) return NULL;
            long n = strtol(name, &end, 10);
            if (end - name > 4) return NULL;
            numbers[count++] = (int)n;
            name = end;
        } else if (*name == *pattern || (*pattern == '.' && *name == '_')) {
            name++;
        } else {
            return NULL;
        }
    }
    return !*name || *name == '.' || *name == '_' ? name : NULL;
}

/* Block n of those counted through: ends are the last blocks of levels. */
static void level_of(int n, int first, const int *ends, int count, int *numbers)
{
    int level = 0;
    while (level < count && ends[level] < n)
        level++;
    numbers[0] = level;
    numbers[1] = n - (level ? ends[level - 1] + 1 : first);
}

static void recount(int *numbers, enum counting counting, const struct original_layout *l)
{
    switch (counting) {
    case COUNT_SAME: break;
    case COUNT_DOWN: level_of(numbers[0], 1, l->down, l->downs, numbers); break;
    case COUNT_UP: level_of(numbers[0], 0, l->up, l->ups, numbers); break;
    case COUNT_VAE_UP: numbers[0] = l->levels - 1 - numbers[0]; break;
    }
}

/* Appends text with its '#' as numbers. */
static void append(char *out, const char *text, const int *numbers)
{
    size_t n = strlen(out);
    for (; *text && n < ORIGINAL_NAME_BYTES - 16; text++) {
        if (*text == '#')
            n += (size_t)snprintf(out + n, ORIGINAL_NAME_BYTES - n, "%d", *numbers++);
        else
            out[n++] = *text;
    }
    out[n] = 0;
}

static int translate(struct original_name *ret, const struct original_layout *l,
                     const struct rule *rules, const char *name)
{
    for (const struct rule *r = rules; r->theirs; r++) {
        int numbers[NUMBERS_MAX] = {0};
        const char *rest = match(r->theirs, name, numbers);
        if (!rest) continue;
        recount(numbers, r->counting, l);
        ret->form = r->form;
        ret->parts = 0;
        do {
            char *out = ret->ours[ret->parts];
            append(out, r->ours, numbers);
            if (r->parts[ret->parts]) append(out, r->parts[ret->parts], numbers);
            if (!r->inner) append(out, rest, numbers);
            ret->parts++;
        } while (ret->parts < ORIGINAL_PARTS_MAX && r->parts[ret->parts]);
        if (!r->inner) return 1;
        append(ret->ours[0], ".", numbers);
        return *rest ? translate(ret, l, r->inner, rest + 1) : 0;
    }
    return 0;
}

int original_translate(struct original_name *ret, const struct original_layout *layout,
                       const char *name)
{
    memset(ret, 0, sizeof *ret);
    return translate(ret, layout, codes[layout->code], name);
}
