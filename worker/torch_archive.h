/* torch_archive.h - what torch.save wrote (.bin, .ckpt, .pt, .pth), read without executing
 * anything.
 *
 * An archive is a zip of stored entries: a pickle NAME/data.pkl and the storages NAME/data/KEY that
 * it names. A pickle is a program; here only the opcodes and globals run that build dictionaries,
 * tuples and tensors, each by code of ours that can do nothing else. Any other is refused by name.
 * The tensors of the top dictionary are read, or those of its "state_dict" where it has one, as
 * checkpoints of training do. */
#ifndef WORKER_TORCH_ARCHIVE_H
#define WORKER_TORCH_ARCHIVE_H
#include "tensors.h"

struct tensor_file;

/* Whether a mapped file is one, also one of the kinds that torch_archive_read refuses: archives of
 * torch before 1.6 (a bare pickle, or tar). */
int torch_archive_is(const struct tensor_file *file);
/* Adds its tensors to t: views into the mapping, or copies where strides are not those of the
 * shape. STEER_BAD_MODEL, STEER_UNSUPPORTED or STEER_NO_MEMORY. */
int torch_archive_read(struct tensors *t, const struct tensor_file *file,
                       struct steer_error *err) STEER_MUSTCHECK;

#endif
