#!/usr/bin/env python3
"""The silent mistakes that cost others days, made on purpose, one at a time: a test must notice each.

    python tests/mutants.py [NAME...]      builds in a copy of the tree; about ten minutes for all (tests/run --long)
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("test_golden", "test_flux", "test_tokenizer", "test_unigram", "test_t5", "test_prompt_syntax", "test_prompt_chunks", "test_kernels", "test_attention",
         "test_recipe", "test_sampler", "test_checkpoint", "test_lora", "test_lower", "test_int8", "test_residence", "test_cuda_attention", "test_cuda_conv",
         "test_cuda_norm", "test_cuda_pointwise", "test_ptx")
UNET, VAE, CLIP, SCHEDULE = "worker/model/unet.c", "worker/model/vae.c", "worker/model/clip.c", "worker/schedule.c"
SAMPLER = "worker/sampler.c"
FAMILY, PIPELINE, PROMPT_TOKENS = "worker/model/family_sd.c", "worker/pipeline.c", "worker/prompt_tokens.c"
PIXART, FAMILY_PIXART, LOWER = "worker/model/pixart.c", "worker/model/family_pixart.c", "worker/text/lower.c"
BPE, TABLES = "worker/text/clip_bpe.c", "worker/text/clip_tables.c"
SYNTAX, CHUNKS = "worker/text/prompt_syntax.c", "worker/text/prompt_chunks.c"
FLUX = "worker/model/flux.c"
T5, UNIGRAM, PIECES, CHARSMAP = "worker/model/t5.c", "worker/text/unigram.c", "worker/text/unigram_tables.c", "worker/text/charsmap.c"
NAMES, CHECKPOINT, LORA, LORA_FILE = "worker/original_names.c", "worker/checkpoint.c", "worker/lora.c", "worker/lora_file.c"
CUDA_ATTENTION, CUDA_CONV = "kernels/cuda/attention.cuh", "kernels/cuda/conv"
CUDA_POINTWISE, CUDA_VALUES, CUDA_NORM, CUDA_GROUP_NORM = (f"kernels/cuda/{name}.cuh" for name in ("pointwise", "values", "norm", "group_norm"))
ATTENTION, REF, RANDOM, WEIGHT = "kernels/cpu/attention.c", "kernels/ref/ref.c", "worker/random.c", "kernels/weight.c"

MUTANTS = {
    "cuda: V read before all of it has come": (CUDA_ATTENTION, "softmax_tile<S>(&z, s, w);\n            copy_async_wait<0>();\n            block_sync();", "softmax_tile<S>(&z, s, w);\n            copy_async_wait<0>();"),
    "cuda: nasa adds the negative": (CUDA_ATTENTION, "w.result = negative && plan.own ? -alpha : 1;", "w.result = negative && plan.own ? alpha : 1;"),
    "cuda: rows of an even number of pieces": (CUDA_ATTENTION, "((depth * 2 * SLICES) | 1) * 16", "(depth * 2 * SLICES) * 16"),
    "cuda: no zeros beside a row of an image": (CUDA_CONV + ".cuh", "y >= c.up_h || x < 0 || x >= c.up_w) return -1;", "y >= c.up_h) return -1;"),
    "cuda: one patch for two blocks of channels": (CUDA_CONV + ".cu", "1 + (int)ceil_div(CONV_STAGES - 1, taps)", "(int)ceil_div(CONV_STAGES - 1, taps)"),
    "cuda: parities of a doubled image exchanged": (CUDA_CONV + ".cu", "{{0, 1, 1}, {0, 0, 1}}", "{{0, 0, 1}, {0, 1, 1}}"),
    "cuda: group norm leaves the mean's rounding in": (CUDA_GROUP_NORM, "fmaf(v[i][k] - off, factor, shift[k])", "fmaf(v[i][k] - 0 * off, factor, shift[k])"),
    "cuda: group norm's chunks all of one size": (CUDA_GROUP_NORM, "(float)(left < each ? left : each)", "(float)(left < each ? each : left)"),
    "cuda: rope turns halves for pairs": (CUDA_NORM, "v[2 * i], odd = v[2 * i + 1]", "v[i], odd = v[i + pairs]"),
    "cuda: modulate by scale for 1 + scale": (CUDA_POINTWISE, "fmaf(x[i], 1 + z[i], y[i])", "fmaf(x[i], z[i], y[i])"),
    "cuda: 8 bits by truncation": (CUDA_VALUES, "(uint32_t)(int)rintf(v[i])", "(uint32_t)(int)v[i]"),
    "nasa as (1+a)Z+ - aZ-": (ATTENTION, "store(zp + c, load(zp + c) - alpha", "store(zp + c, load(zp + c) * (1 + alpha) - alpha"),
    "nasa missing in the middle block": (UNET, "    if (f->size->method == GUIDANCE_NONE) {", "    if (f->size->method == GUIDANCE_NONE || !strncmp(path, \"mid_block\", 9)) {"),
    "nag: nag_scale taken as phi": (ATTENTION, "zp[c] + phi * (zp[c] - zn[c])", "zp[c] + (phi - 1) * (zp[c] - zn[c])"),
    "nag: 2-norms": (ATTENTION, "norm_t += fabsf(zt[c]);\n        norm_p += fabsf(zp[c]);", "norm_t += zt[c] * zt[c];\n        norm_p += zp[c] * zp[c];"),
    "vsf: the negative's values without its sign": (ATTENTION, "float alpha = j->param[GUIDANCE_ALPHA];", "float alpha = (j->op->method == GUIDANCE_VSF ? -1 : 1) * j->param[GUIDANCE_ALPHA];"),
    "nasa `mass` as `text`": (ATTENTION, "variant == GUIDANCE_TEXT ? N : N | S", "variant != GUIDANCE_JOINT ? N : N | S"),
    "nasa `joint` without the image's part": (ATTENTION, "if (method == GUIDANCE_VSF || variant != GUIDANCE_JOINT) share[SHARED] = 0;", "share[SHARED] = 0;"),
    "vsf without its offset": (ATTENTION, "j.segment[NEGATIVE].offset = -j.param[GUIDANCE_OFFSET];", "j.segment[NEGATIVE].offset = 0;"),
    "segments merged under a maximum of one": (ATTENTION, "share[i] = w->m[i][r] == most ? 1 : expf(w->m[i][r] - most);", "share[i] = 1;"),
    "rope: halves turned for pairs": ("kernels/cpu/norm.c", "return x * cosines + lanes_1(x) * sines;", "return x * cosines + lanes_8(x) * sines;"),
    "modulate by scale for 1 + scale": ("kernels/cpu/norm.c", "a.more = 1;", "a.more = 0;"),
    "int8: cut instead of rounded": ("kernels/weight.c", "(row[i] * per + 12582912.f) - 12582912.f", "row[i] * per"),
    "int8: a scale of 128ths": ("kernels/weight.c", "per > 0 ? most / 127 : 0", "per > 0 ? most / 128 : 0"),
    "int8: LoRAs after quantizing": ("kernels/weight.c", "            if (d.up) tile_add(row, n, &d, (size_t)o, 1, 0, n);\n            row_quantize", "            row_quantize"),
    "int8: pairs of bf16 turned": ("kernels/cpu/int8.c", "((u16)even >> 16) | ((u16)odd & 0xffff0000)", "((u16)odd >> 16) | ((u16)even & 0xffff0000)"),
    "int8: a tap beyond the image wraps": ("kernels/cpu/int8.c", "row >= j->in->shape.h || column < 0 ||", "row >= j->in->shape.h || column < -1 ||"),
    "tables read though the file has shrunk": (PIPELINE, "    int code = params_error(params, err);\n    return code ? code : plan_run(plan, watch, err);", "    (void)params;\n    return plan_run(plan, watch, err);"),
    "text encoders stay": (PIPELINE, "        params_unpack(p->model->encoders[i].params);", "        ;"),
    "patches: channels last for first": (REF, "op->order == PATCH_CHANNEL_FIRST ?", "op->order == PATCH_CHANNEL_LAST ?"),
    "attention_head_dim as a width": (UNET, "        if (attends && c->channels[i] % c->heads[i])", "        c->heads[i] = c->channels[i] / c->heads[i] > 0 ? c->channels[i] / c->heads[i] : 1;\n        if (attends && c->channels[i] % c->heads[i])"),
    "transformer group norm 1e-5": (UNET, "f->c->groups, 1e-6, ACT_NONE", "f->c->groups, 1e-5, ACT_NONE"),
    "resnet group norm 1e-6": (UNET, '"norm_eps", 1e-5, file, err)) ||', '"norm_eps", 1e-5, file, err)) || (c.norm_eps = 1e-6, 0) ||'),
    "layer norm 1e-6": (UNET, 'net_layer_norm(n, x, 1e-5, "%s.norm2"', 'net_layer_norm(n, x, 1e-6, "%s.norm2"'),
    "vae group norm 1e-5": (VAE, "#define VAE_EPS 1e-6", "#define VAE_EPS 1e-5"),
    "vae: latents_mean divided by scaling_factor": (VAE, "c->latents_mean[k] * scale", "c->latents_mean[k]"),
    "geglu by tanh": ("kernels/cpu/vector.h", "return x * 0.5f * (verf(x * 0.70710678f) + 1.f);", "return x / (vexp((x * x * x * 0.044715f + x) * -1.59576912f) + 1.f);"),
    "instaflow at 999": (SCHEDULE, "1000.0 * (1 - (double)i / steps)", "999.0 * (1 - (double)i / steps)"),
    "dmd2 with the exact alpha_bar": ("worker/recipes/dmd2-sd15.json", ', "alpha_bar": 0.0047', ""),
    "euler without init_noise_sigma": (SCHEDULE, "? sqrt(most * most + 1) : most;", "? 1 : 1;"),
    "leading spacing as linspace": (SCHEDULE, "case SPACING_LEADING: s->timestep[i] = (steps - i) * ratio + c->steps_offset; break;", "case SPACING_LEADING: s->timestep[i] = 999.0 * (steps - i) / steps; break;"),
    "informed start: the noise unscaled": (PIPELINE, "sample, noise, own->x);", "sample, 1, own->x);"),
    "ancestral noise without its level": (SAMPLER, "s->held[i] * up;", "s->held[i] * sigma[1];"),
    "unipc without its corrector": (SAMPLER, "        unipc_update(s, call, s->order, s->mean, s->held);\n        memcpy(x, s->held, s->count * sizeof *x);", "        ;"),
    "clip_sample passed over": (SAMPLER, "return !c->clip_sample ? x0 :", "return 1 ? x0 :"),
    "ddim ends at alpha_bar 1": (SCHEDULE, "return s->config.set_alpha_to_one ? 1 : s->alpha_bar[0];", "return 1;"),
    "linspace rounded twice": (SCHEDULE, "fmaf(step, (float)i, start)", "start + step * (float)i"),
    "lora: a vector of columns twice": (WEIGHT, "y = *(const v16 *)(d + TILE_LANES);", "y = *(const v16 *)d;"),
    "lora: the last columns of a tile left out": (WEIGHT, "for (size_t r = 0; r < rows && done < n; r++)", "for (size_t r = 0; r < rows && !done; r++)"),
    "attention: a key's value paired with itself": (ATTENTION, "row_of(j, v, tile * KEYS + i + 1, keys, head)", "row_of(j, v, tile * KEYS + i, keys, head)"),
    "attention: keys transposed but for squares of two": ("kernels/cpu/vector.h", "int i = k / 2 * 4 + k % 2;", "int i = k / 4 * 8 + k % 4;"),
    "8 bits by truncation": (REF, "(uint8_t)nearbyintf(v * 255)", "(uint8_t)(v * 255)"),
    "quick_gelu as gelu": (CLIP, "{ACT_QUICK_GELU, ACT_GELU,", "{ACT_GELU, ACT_GELU,"),
    "causal mask missing": (CLIP, "c->heads, scale, 1, TENSOR_NONE", "c->heads, scale, 0, TENSOR_NONE"),
    "sdxl: time_ids with W before H": (FAMILY, "{height, width, 0, 0, height, width}", "{width, height, 0, 0, width, height}"),
    "sdxl: the last hidden state": (CLIP, "i == c->layers - 1 && states == STATES_PENULTIMATE", "i == c->layers - 1 && states == STATES_PENULTIMATE && (x = layer(n, c, x, \"text_model.encoder.layers.1\"), 1)"),
    "sdxl: the encoding of \"\" for an absent negative": (PROMPT_TOKENS, "absent = !text && m->zero_when_absent;", "absent = 0;"),
    "sdxl: zeros for an empty negative": (PROMPT_TOKENS, "absent = !text && m->zero_when_absent;", "absent = (!text || !*text) && m->zero_when_absent;"),
    "sdxl: pooled at the last row": (CLIP, "    return ids[row] == c->eos ? row : 0;", "    return tokens - 1;"),
    "sdxl: the legacy eos_token_id taken at its word": (CLIP, "    if (c->eos == 2) {", "    if (c->eos == -2) {"),
    "sdxl: pooled without its projection": (FAMILY, "STATES_PENULTIMATE, POOLED_PROJECTED", "STATES_PENULTIMATE, POOLED_LAST"),
    "sdxl: sizes before the pooled text": (UNET, "        x = op_concat(g, x,\n                      op_sinusoid(g, op_channels(g, f->out->sizes, i, 1), c->added_time_channels,\n                                  c->flip_sin_to_cos, c->freq_shift));", "        x = op_concat(g, op_sinusoid(g, op_channels(g, f->out->sizes, i, 1), c->added_time_channels, c->flip_sin_to_cos, c->freq_shift), x);"),
    "sdxl: the added embedding's act_fn": (UNET, "ACT_SILU, \"add_embedding.linear_1\"", "c->act, \"add_embedding.linear_1\""),
    "sdxl: the negative's pooled text under NASA": (PIPELINE, "under_negative ? own->negative : own->positive, 0);", "under_negative || s->method != GUIDANCE_NONE ? own->negative : own->positive, 0);"),
    "sd2.1 padded with end-of-text": (TABLES, '                 {"pad_token", "<|endoftext|>"}};', '                 {"unk_token", "<|endoftext|>"}};'),
    "dmd2 on sdxl at 999": ("worker/recipes/dmd2-sdxl-1step.json", "[399]", "[999]"),
    "pixart: cross-attention normalised": (PIXART, "cross_attention(f, x, path));", 'cross_attention(f, norm(f, x, path, "norm2"), path));'),
    "pixart: cross-attention gated": (PIXART, "op_add(g, x, cross_attention(", "op_gated_add(g, x, part[GATE], cross_attention("),
    "pixart: padding seen": (PIXART, "scale, 0, f->mask.positive,", "scale, 0, TENSOR_NONE,"),
    "pixart: the positive's mask for both": (PIXART, "{k.negative, v.negative, f->mask.negative}", "{k.negative, v.negative, f->mask.positive}"),
    "pixart: rows before columns": (PIXART, "position_fill(at, half, x, trained, w, ", "position_fill(at, half, y, trained, h, "),
    "pixart: 1024's positions one to a number": (PIXART, "c.sample_size >= 128 ? c.sample_size / 64 : 1", "1"),
    "pixart: positions not stretched": (PIXART, "(float)((double)places / places_trained)", "(float)(places / places)"),
    "pixart: the variance for the noise": (PIXART, "op_channels(g, x, 0, c->in_channels)", "op_channels(g, x, c->in_channels, c->in_channels)"),
    "pixart: scale before shift": (PIXART, "enum { SHIFT, SCALE, GATE,", "enum { SCALE, SHIFT, GATE,"),
    "pixart: patches put back channels first": (PIXART, "c->patch, PATCH_CHANNEL_LAST", "c->patch, PATCH_CHANNEL_FIRST"),
    "pixart: captions through gelu by erf": (PIXART, "ACT_GELU_TANH, \"caption_projection", "ACT_GELU, \"caption_projection"),
    "pixart: modulation without SiLU": (PIXART, "op_activation(g, time, ACT_SILU), 6", "time, 6"),
    "pixart: the last modulation after SiLU": (PIXART, "op_add(g, time, op_channels(g, own, 0,", "op_add(g, op_activation(g, time, ACT_SILU), op_channels(g, own, 0,"),
    "pixart: width before height": (FAMILY_PIXART, "out[0] = (float)height;\n    out[1] = (float)width;", "out[0] = (float)width;\n    out[1] = (float)height;"),
    "pixart: width over height": (FAMILY_PIXART, "(double)height / width", "(double)width / height"),
    "pixart: 77 tokens": (FAMILY_PIXART, "TOKENS = 120", "TOKENS = 77"),
    "pixart: capitals": (FAMILY_PIXART, "e->lower = 1;", "e->lower = 0;"),
    "pixart: no final sigma": (LOWER, "c == SIGMA && ends_word", "c == -1 && ends_word"),
    "yoso-pixart by eps": ("worker/recipes/yoso-pixart.json", "v_prediction\",", "epsilon\","),
    "dmd-pixart at 999": ("worker/recipes/dmd-pixart.json", "[400]", "[999]"),
    "NFKC for NFC": (TABLES, "UTF8PROC_STABLE | UTF8PROC_COMPOSE", "UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT"),
    "no NFC": (TABLES, "UTF8PROC_STABLE | UTF8PROC_COMPOSE", "UTF8PROC_STABLE"),
    "ASCII lower case": (TABLES, "c = utf8proc_tolower(c);", "c = c < 128 ? utf8proc_tolower(c) : c;"),
    "U+0130 to one letter": (TABLES, "if (c == 0x130) {", "if (c == -1) {"),
    "marks as letters": (BPE, "case UTF8PROC_CATEGORY_LO: return KIND_LETTER;", "case UTF8PROC_CATEGORY_MN:\n    case UTF8PROC_CATEGORY_LO: return KIND_LETTER;"),
    "no contractions": (BPE, "short_form = c == '\\''  ? contraction(", "short_form = c == -1 ? contraction("),
    "digits in runs": (BPE, "} else if (kind != KIND_NUMBER) {", "} else {"),
    "only ASCII digits": (BPE, "case UTF8PROC_CATEGORY_ND:\n", "case UTF8PROC_CATEGORY_ND: if (c > 127) return KIND_OTHER; return KIND_NUMBER;\n"),
    "merges that begin with # skipped": (TABLES, 'if (!n || (n >= 8 && memcmp(line, "#version", 8) == 0)) continue;', "if (!n || line[0] == '#') continue;"),
    "special tokens in the text not seen": (BPE, "const struct special *s = special_at(t, text + i, size - i, normalized);", "const struct special *s = NULL;"),
    "lora: alpha not over the rank": (LORA_FILE, "number(views[ROLE_ALPHA]) / (double)ret->rank", "number(views[ROLE_ALPHA])"),
    "lora: alpha without its square root": (LORA_FILE, 'json_is_true(config_get(c, part, "use_rslora")) ? sqrt(rank) : rank', "rank"),
    "lora: every part of a fused layer gets its first rows": (LORA, "first += views[i]->shape[0];", "first += 0 * views[i]->shape[0];"),
    "flux lora: the last norm's halves as they are": (LORA, "name.form == FORM_SWAPPED, err", "0, err"),
    "flux file: the last norm's halves as they are": (CHECKPOINT, "if (name->form == FORM_SWAPPED) code", "if (0) code"),
    "open_clip: the projection not transposed": (CHECKPOINT, "if (name->form == FORM_TRANSPOSED) code", "if (0) code"),
    "vae file: levels from the wrong end": (NAMES, "case COUNT_VAE_UP: numbers[0] = l->levels - 1 - numbers[0]; break;", "case COUNT_VAE_UP: break;"),
    "[a] as 0.9": (SYNTAX, "SQUARE_FACTOR = 1 / 1.1", "SQUARE_FACTOR = 0.9"),
    "an open bracket weighs nothing": (SYNTAX, "weigh(p, p->rounds.items[i].piece, ROUND_FACTOR);", ";"),
    "weights without the mean restored": (CHUNKS, "if (!weighed || !isfinite(ratio)) return;", "return;"),
    "t5 weights about 0": (CHUNKS, "row[i] = from[i] + weights[t] * (row[i] - from[i]);", "row[i] = weights[t] * row[i];"),
    "t5 pieces in capitals": (CHUNKS, "    if (!lower) return unigram_tokens(", "    if (1) return unigram_tokens("),
    "phrases torn at a chunk's end": (CHUNKS, "#define COMMA_BACKTRACK 20", "#define COMMA_BACKTRACK 0"),
    "weights left behind when tokens move": (CHUNKS, "out->weights[to + i] = out->weights[from + i];", ""),
    "t5: logits divided by sqrt(d_kv)": (T5, "c->heads, 1, 0, ret->mask, bias)", "c->heads, 1 / sqrt(c->head_channels), 0, ret->mask, bias)"),
    "t5: gated-gelu by erf": (T5, '{ACT_GELU_TANH, "gelu_new"}, {ACT_GELU_TANH, "gelu_new"},', '{ACT_GELU, "gelu_new"}, {ACT_GELU_TANH, "gelu_new"},'),
    "t5: padding seen": (T5, "0, ret->mask, bias)", "0, TENSOR_NONE, bias)"),
    "t5: distances turned round": (T5, "(int)(i % (size_t)tokens) - (int)(i / (size_t)tokens)", "(int)(i / (size_t)tokens) - (int)(i % (size_t)tokens)"),
    "t5: the last bucket is no end": (T5, "if (bucket > half - 1) bucket = half - 1;", "if (bucket > half) bucket = half;"),
    "t5: layer_norm_epsilon 1e-6": (T5, '"layer_norm_epsilon", 1e-6, file, err)) ||', '"layer_norm_epsilon", 1e-6, file, err)) || (c.eps = 1e-6, 0) ||'),
    "t5: wi_1 activated for wi_0": (T5, 'c->gated ? "wi_0" : "wi"', 'c->gated ? "wi_1" : "wi"'),
    "flux: the negative's rows under the positive pooled state": (FLUX, "vec = conditions(f, time, pooled.negative);", "vec = conditions(f, time, pooled.positive);"),
    "flux: the last norm's shift before its scale": (FLUX, "part(&f, m, 1), part(&f, m, 0)", "part(&f, m, 0), part(&f, m, 1)"),
    "flux: gelu by erf in single blocks": (FLUX, 'ACT_GELU_TANH, "%s.proj_mlp"', 'ACT_GELU, "%s.proj_mlp"'),
    "flux: norms with 1e-5": (FLUX, "#define EPS 1e-6", "#define EPS 1e-5"),
    "flux: columns turned as rows": (FLUX, "{0, at / w, at % w}", "{0, at % w, at / w}"),
    "flux: the negative text sees the positive one": (FLUX, "own[i == NEGATIVE ? NEGATIVE : POSITIVE]", "own[POSITIVE]"),
    "flux: the negative text as it was at first": (FLUX, "        h = modulated(f, *x, p[i].modulation, 3);", "        if (i == NEGATIVE) continue;\n        h = modulated(f, *x, p[i].modulation, 3);"),
    "flux: 512 tokens": ("worker/model/family_flux.c", "TEXT_TOKENS = 256,", "TEXT_TOKENS = 512,"),
    "flux: patches with channels last": (FLUX, "op_unpatches(g, x, FLUX_PATCH, PATCH_CHANNEL_FIRST)", "op_unpatches(g, x, FLUX_PATCH, PATCH_CHANNEL_LAST)"),
    "flux: time as 0 to 1": (SCHEDULE, "(float)s->config.num_train_timesteps / 1000 * 1000;", "1.0f;"),
    "unigram: normalizing without graphemes": (CHARSMAP, "m && end - i < GRAPHEME_BYTES ?", "m && end - i < 1 ?"),
    "unigram: long graphemes whole": (CHARSMAP, "#define GRAPHEME_BYTES     6", "#define GRAPHEME_BYTES     60"),
    "unigram: no normalizer": (UNIGRAM, "charsmap_normalize(t->charsmap, s.text", "charsmap_normalize(NULL, s.text"),
    "unigram: unknown pieces apart": (UNIGRAM, "while (id == SPIECE_UNK && end < size", "while (id < 0 && end < size"),
    "unigram: special tokens in the text not seen": (UNIGRAM, "added_at(t, s.text + i, s.size - i, normalized);", "NULL;"),
    "unigram: only U+0020 parts words": (UNIGRAM, "            if (is_space(c) || c == MARK_CHAR) break;", "            if (c == ' ' || c == MARK_CHAR) break;"),
    "unigram: a mark in the text parts nothing": (UNIGRAM, "            if (is_space(c) || c == MARK_CHAR) break;", "            if (is_space(c)) break;"),
    "unigram: an unknown character is cheap": (PIECES, "t->unk_score -= 10;", "t->unk_score += 1;"),
    "unigram: the first of two equal pieces": (PIECES, "return x->id > y->id ? -1 : 1;", "return x->id < y->id ? -1 : 1;"),
    "unigram: extra ids upwards": (PIECES, "for (int i = extra_ids - 1; i >= 0 && !code; i--) {", "for (int i = 0; i < extra_ids && !code; i++) {"),
    "unigram: a token too few": (UNIGRAM, "ids, length - 1, &count, &cut", "ids, length - 2, &count, &cut"),
    "ptx: wait_group lands every group": ("tests/gpu/ptx/memory.c", "(n->mode || c->group + (uint64_t)n->target < w->committed[c->lane])", "1"),
    "ptx: mma's registers 1 and 2 changed places": ("tests/gpu/ptx/warp.c", "int row = i / 4 + r % 2 * 8, col = i % 4 * 2 + r / 2 * 8;", "int row = i / 4 + r / 2 * 8, col = i % 4 * 2 + r % 2 * 8;"),
    "ptx: a write after another's read is no race": ("tests/gpu/ptx/memory.c", 'return race(w, lane, "it writes over what is read by", address, reader);', "return 0;"),
    "torch.randn with libm": (RANDOM, "log_block(1 - x[i])", "logf(1 - x[i])"),
}


def main(names):
    unseen, wrong = [], []
    chosen = {name: MUTANTS[name] for name in names or MUTANTS}
    folder = Path(tempfile.mkdtemp(prefix="steer-mutants-"))
    tree, build = folder / "tree", folder / "build"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")[:-1]
    for f in files:
        (tree / f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / f, tree / f)
    subprocess.run(["cmake", "-S", tree, "-B", build, "-G", "Ninja", "-DBUILD_TESTING=ON"], check=True, stdout=subprocess.DEVNULL)
    compile_all = ["cmake", "--build", build, "--target", *TESTS, "steer-worker"]
    subprocess.run(compile_all, check=True, stdout=subprocess.DEVNULL)
    env = {**os.environ, "STEER_SOURCE_DIR": str(tree), "STEER_BIN_DIR": str(build / "bin"), "OMP_WAIT_POLICY": "passive"}

    def noticed():
        """The first test that fails, or None."""
        for test in TESTS:
            if subprocess.run([build / "bin" / test], cwd=folder, env=env, capture_output=True, timeout=600).returncode:
                return test
        return None

    assert noticed() is None, "the tests fail without a mutant"
    for name, (file, old, new) in chosen.items():
        path = tree / file
        text = path.read_text()
        if text.count(old) != 1:
            wrong.append(name)
            print(f"{name}: not found in {file} exactly once", flush=True)
            continue
        path.write_text(text.replace(old, new))
        if subprocess.run(compile_all, capture_output=True).returncode:
            wrong.append(name)
            print(f"{name}: does not build", flush=True)
        else:
            by = noticed()
            print(f"{name}: {by or 'NOT NOTICED'}", flush=True)
            unseen += [] if by else [name]
        path.write_text(text)
    shutil.rmtree(folder)
    print(f"{len(chosen) - len(unseen) - len(wrong)} mutants noticed, {len(unseen)} not, {len(wrong)} could not be made")
    return 1 if unseen or wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
