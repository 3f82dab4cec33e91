// SPDX-License-Identifier: Apache-2.0
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int file_open(int *ret_fd, struct stat *ret, const char *path, struct steer_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return steer_fail(err, errno == ENOENT ? STEER_NOT_FOUND : STEER_IO, "%s: %s", path,
                          strerror(errno));
    if (fstat(fd, ret) || !S_ISREG(ret->st_mode)) {
        close(fd);
        return steer_fail(err, STEER_BAD_MODEL, "%s is not a file", path);
    }
    *ret_fd = fd;
    return 0;
}

int file_read(char **ret, size_t *ret_size, const char *path, size_t bytes_max,
              struct steer_error *err)
{
    struct stat st;
    int fd, code = file_open(&fd, &st, path, err);
    if (code) return code;
    size_t size = (size_t)st.st_size, done = 0;
    char *data = NULL;
    if (size > bytes_max)
        code = steer_fail(err, STEER_BAD_MODEL, "%s has %zu bytes: expected at most %zu", path,
                          size, bytes_max);
    else if (!(data = malloc(size + 1)))
        code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    while (!code && done < size) {
        ssize_t n = read(fd, data + done, size - done);
        if (n > 0)
            done += (size_t)n;
        else if (n == 0)
            break; /* it shrank meanwhile; its parser will say so */
        else if (errno != EINTR)
            code = steer_fail(err, STEER_IO, "%s: %s", path, strerror(errno));
    }
    close(fd);
    if (code) {
        free(data);
        return code;
    }
    data[done] = 0;
    *ret = data;
    *ret_size = done;
    return 0;
}
