/* power_vfs.h - a SQLite VFS on a disk that loses power: what was not synced may be gone.
 *
 * It stands on the default VFS and passes everything on, so that files have their usual contents
 * while the machine runs. Beside that it keeps, of each file, what a sync has made durable and the
 * writes since. A cut fails the operation that it meets and all after it; power_restore then
 * writes each file as the disk may have it: the durable bytes and any subset of the sectors written
 * since; a deletion or a creation whose folder was not synced may not have happened. (kill -9 keeps
 * the kernel's page cache and shows nothing of this.)
 *
 * One thread at a time, as the store uses SQLite; files that are not opened through it are not its
 * business. */
#ifndef TESTS_POWER_VFS_H
#define TESTS_POWER_VFS_H
#include <stdbool.h>
#include <stdint.h>

#define POWER_VFS "power"

/* Registers the VFS under POWER_VFS; forgets all files. */
void power_reset(void);
/* The n-th write, truncation, sync or deletion from now on meets the cut; 0: none does. */
void power_cut_after(uint64_t operations);
/* The n-th sync from now on fails (once, the disk goes on); 0: none does. */
void power_fail_sync(uint64_t nth);
/* From now on writes that would make a file longer find the disk full, until called with false. */
void power_disk_full(bool full);
bool power_is_cut(void);
/* Operations so far that a cut could have met. */
uint64_t power_operations(void);
/* Call when nothing is open any more: the files are now what the disk may have kept, all of it
 * durable, and there is power again. */
void power_restore(uint64_t seed);

#endif
