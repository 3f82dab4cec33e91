// SPDX-License-Identifier: Apache-2.0
/* steer doctor: what this machine can do and what is missing, a line each. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "cli.h"

static int failures;
static const struct cli *shape; /* how to say it */

static void say(const char *verdict, const char *what, const char *detail)
{
    int good = strcmp(verdict, "ok") == 0;
    failures += strcmp(verdict, "fail") == 0;
    if (shape->json) {
        json_t *line = json_pack("{s:s, s:s, s:s}", "verdict", verdict, "what", what, "detail",
                                 printable(detail));
        line_json(line);
        json_decref(line);
    } else if (!shape->quiet || !good) {
        printf("%-5s %-12s %s\n", verdict, what, detail);
    }
}

static void processor(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bf16"))
        say("ok", "processor", "AVX-512 with bf16: bf16 and f32 are both fast");
    else if (__builtin_cpu_supports("avx512f"))
        say("ok", "processor", "AVX-512 without bf16: images are rendered in f32");
    else if (__builtin_cpu_supports("avx2"))
        say("warn", "processor", "AVX2 only: f32, and slower than AVX-512");
    else
        say("warn", "processor", "no AVX2: it works, but an image may take minutes");
}

static void memory(void)
{
    double gib = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) / (1 << 30);
    char text[160];
    snprintf(text, sizeof text, "%.1f GiB%s", gib,
             gib < 3.5 ? ": enough for the demo model; Stable Diffusion 1.5 wants 4 GiB" : "");
    say(gib < 3.5 ? "warn" : "ok", "memory", text);
}

static void threads(void)
{
    char text[160], line[64] = "";
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (f) {
        if (!fgets(line, sizeof line, f)) line[0] = 0;
        fclose(f);
    }
    line[strcspn(line, "\n")] = 0;
    snprintf(text, sizeof text, "%ld processors%s%s", sysconf(_SC_NPROCESSORS_ONLN),
             *line ? ", cgroup quota " : "", line);
    say("ok", "threads", text);
}

static void disk(void)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    const char *dir = state && *state ? state : home && *home ? home : ".";
    struct statvfs v;
    char text[1200];
    if (statvfs(dir, &v)) {
        snprintf(text, sizeof text, "%s cannot be looked at: give steer-broker a --data DIR", dir);
        say("warn", "disk", text);
        return;
    }
    double gib = (double)v.f_bavail * (double)v.f_frsize / (1 << 30);
    snprintf(text, sizeof text, "%.1f GiB free in %s", gib, dir);
    say(gib < 1 ? "warn" : "ok", "disk", text);
}

static void farm(const struct cli *cli)
{
    static const struct {
        enum steer_question question;
        const char *what, *field, *missing;
    } asked[] = {
        {STEER_ASK_WORKERS, "workers", "workers", "none: start `steer-worker serve --models DIR`"},
        {STEER_ASK_MODELS, "models", "models", "none has been offered yet"},
    };
    struct steer_client *c;
    struct steer_fault fault;
    struct steer_error err = {0};
    char *text, detail[200];
    if (cli_open(&c, cli, &err)) {
        say("fail", "broker", err.text);
        return;
    }
    int answers = !steer_ask(c, STEER_ASK_STATUS, NULL, &text, 2000, &fault);
    say(answers ? "ok" : "warn", "broker", answers ? "answers" : fault.text);
    if (answers) free(text);
    for (size_t i = 0; i < 2 && answers; i++) {
        if (steer_ask(c, asked[i].question, NULL, &text, 2000, &fault)) continue;
        json_t *reply = json_loads(text, 0, NULL);
        size_t count = json_array_size(json_object_get(reply, asked[i].field));
        snprintf(detail, sizeof detail, "%zu", count);
        say(count ? "ok" : "warn", asked[i].what, count ? detail : asked[i].missing);
        json_decref(reply);
        free(text);
    }
    steer_close(c);
}

int command_doctor(int argc, char **argv, struct steer_error *err)
{
    struct cli cli;
    int words;
    const struct args_group groups[] = {{"Connection", cli_options, &cli}, {NULL, NULL, NULL}};
    int code = cli_parse(&cli, groups,
                         "steer doctor\n\nA line each: ok, warn or fail. --quiet leaves out what "
                         "is ok.\n",
                         argc, argv, &words, err);
    if (code) return code == 1 ? 0 : code;
    shape = &cli;
    if (words) return steer_fail(err, STEER_USAGE, "doctor takes no words");
    processor();
    threads();
    memory();
    disk();
    farm(&cli);
    return failures ? steer_fail(err, STEER_UNSUPPORTED, "%d of these must be mended", failures)
                    : 0;
}
