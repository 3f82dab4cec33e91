/* random.h - torch's CPU generator and its normal numbers, bit for bit: the seeds that people know
 * give the noise that they know.
 *
 * torch.Generator("cpu").manual_seed(s) is mt19937 seeded with the low 32 bits of s. torch.randn
 * draws below 16 values one by one in double (Box-Muller, the second of each pair kept for later),
 * 16 and more in blocks of 16 in f32 (ATen native/cpu/DistributionTemplates.h); the logarithm, sine
 * and cosine of the blocks are those of its AVX2 code, on every processor. */
#ifndef WORKER_RANDOM_H
#define WORKER_RANDOM_H
#include <stddef.h>
#include <stdint.h>

struct random {
    uint32_t state[624];
    int at;
    int has_next;
    double next; /* the other half of the last pair of the small path */
};

void random_seed(struct random *r, uint64_t seed);
uint32_t random_u32(struct random *r);
/* What torch.randn(count) would give next, as f32. */
void random_normal(struct random *r, float *out, size_t count);

#endif
