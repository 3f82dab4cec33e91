// SPDX-License-Identifier: Apache-2.0
/* Single-file checkpoints in the original naming, against what diffusers' from_single_file makes of
 * them: tests/golden/checkpoints.py made the files, and lists of names, shapes and CRCs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zlib.h>

#include "checkpoint.h"

static char golden[1024];
static const char *const parts[] = {"unet", "transformer", "vae", "text_encoder", "text_encoder_2"};

/* The line that the list has for a tensor. */
static void line_make(char line[512], const char *part, const struct tensor_view *v)
{
    int n =
        snprintf(line, 512, "%s %s %08lx ", part, v->name, crc32(0, v->data, (unsigned)v->bytes));
    for (int i = 0; i < v->rank; i++)
        n += snprintf(line + n, 512 - (size_t)n, i ? "x%lld" : "%lld", (long long)v->shape[i]);
}

/* Every tensor of the list is in the file, in its shape and to the byte. transformers 5 names a
 * text encoder's parameters without "text_model."; files have it. */
static void same_as_diffusers(const char *name)
{
    char path[1200], want[512], got[512], tensor[256];
    struct steer_error err = {0};
    struct tensors *open[5] = {NULL};
    int lines = 0;
    snprintf(path, sizeof path, "%s/%s.txt", golden, name);
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    path[strlen(path) - 4] = 0;
    for (; fgets(want, sizeof want, f); lines++) {
        int part = 0, at = 0;
        want[strcspn(want, "\n")] = 0;
        while (strncmp(want, parts[part], strlen(parts[part])) || want[strlen(parts[part])] != ' ')
            part++;
        if (!open[part] && checkpoint_open(&open[part], path, (enum checkpoint_part)part, &err))
            fail_msg("%s", err.text);
        assert_int_equal(sscanf(want, "%*s %255s%n", tensor, &at), 1);
        const struct tensor_view *v = tensors_find(open[part], tensor);
        char root[300];
        snprintf(root, sizeof root, "text_model.%s", tensor);
        if (!v) v = tensors_find(open[part], root);
        if (!v) fail_msg("%s: %s is missing", name, tensor);
        struct tensor_view named = *v;
        named.name = tensor;
        line_make(got, parts[part], &named);
        if (strcmp(got, want)) fail_msg("%s: expected %s, got %s", name, want, got);
    }
    fclose(f);
    assert_true(lines > 10);
    for (int i = 0; i < 5; i++)
        tensors_close(open[i]);
}

static void test_as_diffusers(void **unused)
{
    (void)unused;
    same_as_diffusers("sd15.ckpt");
    same_as_diffusers("sdxl.safetensors");
    same_as_diffusers("sd21-text.safetensors");
    same_as_diffusers("flux.safetensors");
}

/* A component as diffusers saves it is taken as it is. */
static void test_own_names(void **unused)
{
    (void)unused;
    char path[1200];
    struct tensors *plain = NULL, *t = NULL;
    struct steer_error err = {0};
    snprintf(path, sizeof path, "%s/../data/small/model/unet/diffusion_pytorch_model.safetensors",
             golden);
    if (tensors_open(&plain, path, &err) || checkpoint_open(&t, path, CHECKPOINT_UNET, &err))
        fail_msg("%s", err.text);
    assert_int_equal(tensors_count(t), tensors_count(plain));
    assert_non_null(tensors_find(t, "conv_in.weight"));
    tensors_close(t);
    tensors_close(plain);
}

static void test_missing(void **unused)
{
    (void)unused;
    char path[1200];
    struct tensors *t = NULL;
    struct steer_error err = {0};
    snprintf(path, sizeof path, "%s/flux.safetensors", golden);
    assert_int_equal(checkpoint_open(&t, path, CHECKPOINT_UNET, &err), STEER_BAD_MODEL);
    assert_non_null(strstr(err.text, "no U-Net in it"));
    assert_non_null(strstr(err.text, "double_blocks."));
    snprintf(path, sizeof path, "%s/sd15.ckpt", golden);
    assert_int_equal(checkpoint_open(&t, path, CHECKPOINT_TEXT_2, &err), STEER_BAD_MODEL);
    assert_non_null(strstr(err.text, "no second text encoder in it"));
}

int main(void)
{
    snprintf(golden, sizeof golden, "%s/tests/golden/checkpoints", getenv("STEER_SOURCE_DIR"));
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_as_diffusers),
                                       cmocka_unit_test(test_own_names),
                                       cmocka_unit_test(test_missing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
