// SPDX-License-Identifier: Apache-2.0
/* The store on a disk that loses power, fails a sync or fills up (power_vfs.h).
 *
 * Every batch puts one job, so the number of batches that a directory holds is its greatest job id.
 * A run knows which batches were answered as kept; after each cut the directory must hold the state
 * after some whole number of batches, no fewer than those, and nothing else. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "power_vfs.h"
#include "store.h"
#include "wire.h"

enum { BATCHES = 60, IMAGE_BYTES_MAX = 3000 };

/* What batch k (k = 1..BATCHES) does besides putting job k. Drawn once a seed. */
struct step {
    uint64_t rewrites; /* a new chunk for this job; 0: none */
    uint64_t drops;    /* this job's image has been fetched; 0: none */
    uint64_t ends;     /* this job has ended; 0: none */
    uint32_t image_bytes;
};

/* What the directory holds after some batches. */
struct state {
    bool open[BATCHES + 1], image[BATCHES + 1];
    uint64_t chunk[BATCHES + 1]; /* the batch that wrote it */
};

static char dir[64];
static unsigned boots;
static uint64_t log_bytes_max = 40000; /* checkpoints happen among few commits */
static uint64_t random_state;

static uint64_t draw(uint64_t below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % below;
}

/* The machine is started anew after a power cut, and says so here. */
int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    int mode = flags & O_CREAT ? va_arg(args, int) : 0;
    va_end(args);
    if (strcmp(path, "/proc/sys/kernel/random/boot_id") != 0) return __real_open(path, flags, mode);
    char boot[80];
    snprintf(boot, sizeof boot, "%s/../boot", dir);
    int fd = __real_open(boot, O_RDWR | O_CREAT | O_TRUNC, 0600);
    snprintf(boot, sizeof boot, "boot-%u\n", boots);
    if (pwrite(fd, boot, strlen(boot), 0) < 0) abort();
    return fd;
}

/* ---- the work */

static void draw_steps(struct step steps[BATCHES + 1])
{
    bool image[BATCHES + 1] = {false}, open[BATCHES + 1] = {false};
    for (uint64_t k = 1; k <= BATCHES; k++) {
        struct step s = {.image_bytes = (uint32_t)draw(IMAGE_BYTES_MAX)};
        uint64_t j = draw(k) + 1;
        if (j < k && open[j] && draw(2)) s.rewrites = j;
        j = draw(k) + 1;
        if (j < k && open[j] && image[j]) s.drops = j;
        j = draw(k) + 1;
        if (j < k && open[j] && draw(4) == 0) s.ends = j;
        open[k] = image[k] = true;
        image[s.drops] = image[s.ends] = open[s.ends] = false;
        steps[k] = s;
    }
}

static void state_after(struct state *st, const struct step steps[BATCHES + 1], uint64_t batches)
{
    memset(st, 0, sizeof *st);
    for (uint64_t k = 1; k <= batches; k++) {
        st->open[k] = st->image[k] = true;
        st->chunk[k] = st->chunk[steps[k].rewrites] = k;
        st->image[steps[k].drops] = st->image[steps[k].ends] = st->open[steps[k].ends] = false;
    }
}

static void image_fill(uint8_t *data, uint64_t job, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)(job * 31 + i * 7 + (i >> 8));
}

static struct store_batch *batch_of(const struct step steps[BATCHES + 1], uint64_t k)
{
    static uint8_t payload_data[BATCHES + 1][IMAGE_BYTES_MAX];
    const struct step *s = &steps[k];
    struct store_batch *b = store_batch_new();
    char key[32], text[32];
    snprintf(key, sizeof key, "key-%llu", (unsigned long long)k);
    int n = snprintf(text, sizeof text, "written by %llu", (unsigned long long)k);
    struct store_job job = {
        .id = k, .tenant = "default", .key = key, .spec = text, .spec_bytes = (size_t)n};
    assert_int_equal(store_batch_job_put(b, &job), 0);
    assert_int_equal(store_batch_chunk_put(b, &(struct store_chunk){k, 0, text, (size_t)n}), 0);
    if (s->rewrites)
        assert_int_equal(
            store_batch_chunk_put(b, &(struct store_chunk){s->rewrites, 0, text, (size_t)n}), 0);
    image_fill(payload_data[k], k, s->image_bytes);
    struct store_image image = {.job = k,
                                .bytes = s->image_bytes,
                                .crc32 = wire_crc32(payload_data[k], s->image_bytes),
                                .header = text,
                                .header_bytes = (size_t)n};
    struct store_payload payload = {payload_data[k], s->image_bytes, NULL, NULL};
    assert_int_equal(store_batch_image_spool(b, &image, &payload), 0);
    if (s->drops) assert_int_equal(store_batch_image_drop(b, s->drops, 0), 0);
    if (s->ends) {
        assert_int_equal(store_batch_images_drop(b, s->ends), 0);
        assert_int_equal(store_batch_job_end(b, s->ends, STORE_DONE, k, "sum", 3), 0);
    }
    return b;
}

/* ---- what comes back */

struct seen {
    struct state state;
    bool lost[BATCHES + 1];
    uint64_t jobs;
};

static uint64_t writer_of(const void *data, size_t bytes)
{
    unsigned long long k = 0;
    char text[32];
    assert_in_range(bytes, 1, sizeof text - 1);
    memcpy(text, data, bytes);
    text[bytes] = 0;
    assert_int_equal(sscanf(text, "written by %llu", &k), 1);
    return k;
}

static int see_job(void *context, const struct store_job *j)
{
    struct seen *s = context;
    assert_in_range(j->id, 1, BATCHES);
    assert_int_equal(writer_of(j->spec, j->spec_bytes), j->id);
    s->state.open[j->id] = true;
    s->jobs++;
    return 0;
}

static int see_chunk(void *context, const struct store_chunk *c)
{
    ((struct seen *)context)->state.chunk[c->job] = writer_of(c->data, c->bytes);
    return 0;
}

static int see_image(void *context, const struct store_image *i, bool usable)
{
    struct seen *s = context;
    s->state.image[i->job] = true;
    s->lost[i->job] = !usable;
    return 0;
}

static int open_store(struct store **ret, struct seen *seen, struct store_opened *opened,
                      struct steer_error *err)
{
    struct store_load load = {
        .context = seen, .job = see_job, .chunk = see_chunk, .image = see_image};
    struct store_options options;
    store_options_default(&options);
    options.dir = dir;
    options.vfs = POWER_VFS;
    options.free_bytes_min = options.reserve_bytes = 0; /* the test's own disk is not the subject */
    options.wal_bytes_max = log_bytes_max;
    memset(seen, 0, sizeof *seen);
    return store_open(ret, &options, &load, opened, err);
}

static struct store_completion next(struct store *s)
{
    struct store_completion c;
    struct pollfd p = {store_fd(s), POLLIN, 0};
    while (!store_next(s, &c))
        assert_int_equal(poll(&p, 1, 20000), 1);
    return c;
}

/* The spool is not synced at all: any file written since the last start may be gone, short or
 * zeros. */
static void damage_spool(void)
{
    for (unsigned folder = 0; folder < 256; folder++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/spool/%02x", dir, folder);
        DIR *d = opendir(path);
        if (!d) continue;
        const struct dirent *e;
        while ((e = readdir(d)) != NULL) {
            if (e->d_name[0] == '.') continue;
            char file[1400];
            snprintf(file, sizeof file, "%s/%s", path, e->d_name);
            uint8_t zeros[IMAGE_BYTES_MAX] = {0};
            int fd = open(file, O_RDWR), bad = 0;
            off_t size = lseek(fd, 0, SEEK_END);
            switch (draw(6)) {
            case 0: bad = unlink(file); break;
            case 1: bad = ftruncate(fd, size / 2); break;
            case 2: bad = pwrite(fd, zeros, (size_t)size, 0) != size; break;
            }
            close(fd);
            assert_int_equal(bad, 0);
        }
        closedir(d);
    }
}

/* Every usable image has its bytes; those that the cut may have taken were reported. */
static void check_images(struct store *s, const struct seen *seen,
                         const struct step steps[BATCHES + 1])
{
    for (uint64_t k = 1; k <= BATCHES; k++) {
        if (!seen->state.image[k] || seen->lost[k]) continue;
        assert_int_equal(store_read(s, k, 0, NULL), 0);
        struct store_completion c = next(s);
        assert_int_equal(c.code, 0);
        uint8_t want[IMAGE_BYTES_MAX];
        image_fill(want, k, steps[k].image_bytes);
        assert_int_equal(c.image.bytes, steps[k].image_bytes);
        assert_memory_equal(c.payload, want, steps[k].image_bytes);
        store_completion_clear(&c);
    }
}

static void check_state(const struct seen *seen, const struct step steps[BATCHES + 1],
                        uint64_t batches, bool images_gone[BATCHES + 1])
{
    struct state want;
    state_after(&want, steps, batches);
    for (uint64_t k = 1; k <= BATCHES; k++) {
        assert_int_equal(seen->state.open[k], want.open[k]);
        if (!want.open[k]) continue;
        assert_int_equal(seen->state.chunk[k], want.chunk[k]);
        /* An image reported lost is gone for good; it is never gone unreported. */
        assert_int_equal(seen->state.image[k], want.image[k] && !images_gone[k]);
        images_gone[k] = images_gone[k] || seen->lost[k];
    }
}

static void folder_make(void)
{
    strcpy(dir, "power-XXXXXX");
    assert_non_null(mkdtemp(dir));
}

static void folder_remove(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    assert_int_equal(system(command), 0);
}

/* One directory through power cuts until all batches are in. Returns how many cuts there were. */
static unsigned live_through_cuts(uint64_t seed)
{
    struct step steps[BATCHES + 1];
    bool images_gone[BATCHES + 1] = {false};
    uint64_t kept = 0, epoch = 0;
    unsigned cuts = 0;
    random_state = seed * 0x9e3779b97f4a7c15u + 1;
    power_reset();
    folder_make();
    draw_steps(steps);
    for (;;) {
        struct store *s = NULL;
        struct seen seen;
        struct store_opened opened = {0};
        struct steer_error err = {0};
        power_cut_after(1 + draw(cuts < 12 ? 120 : 2000));
        int code = open_store(&s, &seen, &opened, &err);
        if (code == 0) {
            assert_true(opened.epoch > epoch);
            epoch = opened.epoch;
            assert_in_range(opened.job_last, kept, BATCHES);
            uint64_t sent = opened.job_last, answered = sent;
            check_state(&seen, steps, sent, images_gone);
            if (!power_is_cut()) check_images(s, &seen, steps);
            kept = sent;
            /* Up to four batches on their way, so that some share a commit. */
            bool alive = true;
            while (alive ? answered < BATCHES : answered < sent) {
                while (alive && sent < BATCHES && sent - answered < 1 + draw(4)) {
                    struct store_batch *b = batch_of(steps, ++sent);
                    store_submit(s, &b, NULL);
                }
                struct store_completion c = next(s);
                if (c.code == 0) {
                    assert_true(alive); /* nothing is kept after something was not */
                    kept = answered + 1;
                } else {
                    assert_int_equal(c.code, STEER_STORE);
                    alive = false;
                }
                answered++;
                store_completion_clear(&c);
            }
            store_close(s);
            if (alive && !power_is_cut() && kept == BATCHES) break;
        } else {
            assert_true(power_is_cut()); /* nothing else keeps a store from opening */
            assert_true(strlen(err.text) > 10);
        }
        assert_true(power_is_cut());
        cuts++;
        boots++;
        power_restore(draw(UINT64_MAX));
        damage_spool();
    }
    /* And once more on what is there, unharmed. */
    struct store *s;
    struct seen seen;
    struct store_opened opened;
    power_cut_after(0);
    assert_int_equal(open_store(&s, &seen, &opened, NULL), 0);
    check_state(&seen, steps, BATCHES, images_gone);
    store_close(s);
    folder_remove();
    return cuts;
}

static void test_power_cuts(void **state)
{
    (void)state;
    const char *seeds = getenv("STEER_POWER_SEEDS");
    unsigned cuts = 0, count = seeds ? (unsigned)atoi(seeds) : 60;
    for (uint64_t seed = 1; seed <= count; seed++)
        cuts += live_through_cuts(seed);
    print_message("%u directories, %u power cuts\n", count, cuts);
    assert_true(cuts >= 4 * count);
}

/* Each sync of a run fails in turn: what was answered as kept is kept, the store says so once and
 * writes nothing more, and the next start finds out what happened. */
static void test_failing_sync(void **state)
{
    (void)state;
    unsigned died = 0;
    for (uint64_t nth = 1; nth <= 24; nth++) {
        struct step steps[BATCHES + 1];
        struct store *s = NULL;
        struct seen seen;
        struct store_opened opened;
        struct steer_error err = {0};
        random_state = nth;
        power_reset();
        folder_make();
        draw_steps(steps);
        assert_int_equal(open_store(&s, &seen, &opened, &err), 0);
        power_fail_sync(nth);
        uint64_t kept = 0;
        bool dead = false;
        for (uint64_t k = 1; k <= 12; k++) {
            struct store_batch *b = batch_of(steps, k);
            store_submit(s, &b, NULL);
            struct store_completion c = next(s);
            assert_true(c.code == 0 || c.code == STEER_STORE);
            assert_false(dead && c.code == 0);
            dead = c.code != 0;
            if (!dead) kept = k;
            store_completion_clear(&c);
        }
        if (dead) {
            died++;
            uint64_t before = power_operations();
            assert_non_null(strstr(store_trouble(s), "steer.db"));
            store_close(s);
            assert_int_equal(power_operations(), before); /* not even at close */
        } else {
            store_close(s);
        }
        bool images_gone[BATCHES + 1] = {false};
        power_fail_sync(0);
        assert_int_equal(open_store(&s, &seen, &opened, &err), 0);
        /* The power stayed on, so the batch whose sync failed may be there, whole, or not. */
        assert_in_range(opened.job_last, kept, kept + dead);
        check_state(&seen, steps, opened.job_last, images_gone);
        store_close(s);
        folder_remove();
    }
    assert_in_range(died, 6, 24);
}

/* The disk fills up under the database: new work is refused, whole; when there is room again it
 * goes on. */
static void test_full_disk(void **state)
{
    (void)state;
    struct step steps[BATCHES + 1];
    struct store *s = NULL;
    struct seen seen;
    struct store_opened opened;
    struct steer_error err = {0};
    random_state = 5;
    log_bytes_max = 1 << 30; /* so that the log grows with each commit */
    power_reset();
    folder_make();
    draw_steps(steps);
    assert_int_equal(open_store(&s, &seen, &opened, &err), 0);
    uint64_t kept = 0;
    unsigned refused = 0;
    while (kept < 40) {
        power_disk_full(draw(3) == 0);
        struct store_batch *b = batch_of(steps, kept + 1);
        store_submit(s, &b, NULL);
        struct store_completion c = next(s);
        if (c.code == 0) {
            kept++;
        } else {
            assert_int_equal(c.code, STEER_DISK_FULL);
            assert_true(strlen(store_trouble(s)) > 10);
            refused++;
        }
        store_completion_clear(&c);
    }
    store_close(s);
    power_disk_full(false);
    bool images_gone[BATCHES + 1] = {false};
    assert_int_equal(open_store(&s, &seen, &opened, &err), 0);
    assert_int_equal(opened.job_last, kept);
    check_state(&seen, steps, kept, images_gone);
    assert_int_equal(opened.files_removed, 0); /* a refused image's file does not stay */
    store_close(s);
    folder_remove();
    assert_true(refused > 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_power_cuts),
                                       cmocka_unit_test(test_failing_sync),
                                       cmocka_unit_test(test_full_disk)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
