/* fuzz.h - what the fuzzers share: one function for each, called by libFuzzer with any bytes.
 *
 * A fuzzer checks that nothing is read or written out of bounds (sanitizers), that memory and time
 * stay bounded (libFuzzer's limits), and the invariants it asserts itself. Its seeds are under
 * corpus/; an input that once crashed is kept there too. */
#ifndef FUZZ_H
#define FUZZ_H
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_ASSERT(x)                                                                             \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #x);                  \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* For readers that take files: the bytes under that name in the fuzzer's own folder. */
static inline void fuzz_file(const char *name, const uint8_t *data, size_t size)
{
    FILE *f = fopen(name, "wb");
    FUZZ_ASSERT(f && fwrite(data, 1, size, f) == size);
    FUZZ_ASSERT(fclose(f) == 0);
}

#endif
