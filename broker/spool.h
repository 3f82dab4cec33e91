/* spool.h - images on disk that nobody has acknowledged yet, and the room they may take.
 *
 * An image is one file, DIR/spool/<2 hex>/<job>-<index>-<file>. `file` is a number that is never
 * used twice, so a file is never written over: one without a record is rubbish, whatever its
 * contents, and removing an old one cannot hit a newer one of the same image. That is also why
 * there is no temporary name and no rename, and no fsync: the record, durable, says length and
 * CRC, and an image whose file a power cut took is rendered again.
 *
 * Files are touched by the store's thread only; room may be asked for from any thread. */
#ifndef BROKER_SPOOL_H
#define BROKER_SPOOL_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct spool;

struct spool_file {
    uint64_t job;
    uint64_t file;
    uint32_t index;
    uint32_t crc32;
    uint64_t bytes;
    bool usable; /* out of spool_check */
};

/* Makes DIR/spool and its folders. */
int spool_open(struct spool **ret_spool, const char *dir, uint64_t bytes_max,
               struct steer_error *err) STEER_MUSTCHECK;
void spool_close(struct spool *s); /* NULL is fine */

/* ---- files */

/* STEER_DISK_FULL when the disk or a quota says so, STEER_BUSY when the process or the machine is
 * out of descriptors or memory and it may go better later, else STEER_IO; nothing stays in any
 * case.
 */
int spool_write(struct spool *s, const struct spool_file *f, const void *data,
                struct steer_error *err) STEER_MUSTCHECK;
/* A malloc'ed buffer of f->bytes (never NULL). STEER_IO: missing, of another length, or of another
 * CRC. STEER_BUSY, STEER_NO_MEMORY: the file may well be good. */
int spool_read(struct spool *s, const struct spool_file *f, uint8_t **ret_data,
               struct steer_error *err) STEER_MUSTCHECK;
/* Removing what is not there is fine. Its name is gone at once; up to 256 small files wait as
 * DIR/spool/spare/N to be the next ones, while the disk has plenty of room. */
void spool_remove(struct spool *s, const struct spool_file *f);
/* Sets `usable` of each: the file is there with the right length and, newest first until
 * verify_bytes_max bytes have been read, the right CRC. Removes every file that is not among them
 * and every one that is not usable. Sorts files. */
int spool_check(struct spool *s, struct spool_file *files, size_t count, uint64_t verify_bytes_max,
                uint64_t *ret_removed, struct steer_error *err) STEER_MUSTCHECK;

/* ---- room */

/* 0, or STEER_DISK_FULL: the quota has no such room beside what is used and reserved, or the disk,
 * as spool_disk_set last told, would have less than free_bytes_min left. */
int spool_reserve(struct spool *s, uint64_t bytes) STEER_MUSTCHECK;
void spool_release(struct spool *s, uint64_t bytes);
/* An image is on its way into the spool, or has left it. */
void spool_count_in(struct spool *s, uint64_t bytes);
void spool_count_out(struct spool *s, uint64_t bytes);
/* By the store's thread. */
void spool_disk_set(struct spool *s, uint64_t free_bytes, uint64_t free_bytes_min);

struct spool_room {
    uint64_t used, images, reserved, max, disk_free;
};
void spool_room(struct spool *s, struct spool_room *ret_room);

#endif
