/* states.h - the state of every image of a job in half a byte each, and how many are in each state.
 *
 * A job of a million images takes 500 kB whatever the pattern of what is done; a small one lies in
 * the struct itself. Stored in chunks of STATES_CHUNK images, so that a change writes 2 KiB. */
#ifndef BROKER_STATES_H
#define BROKER_STATES_H
#include <stddef.h>
#include <stdint.h>

#include "error.h"

enum image_state {
    IMAGE_QUEUED,
    IMAGE_LEASED,
    IMAGE_SPOOLED,
    IMAGE_ACKED,
    IMAGE_FAILED,
    IMAGE_CANCELLED,
    IMAGE_EXPIRED,
    IMAGE_STATES
};

#define STATES_CHUNK 4096

struct states {
    uint32_t images;
    uint32_t counts[IMAGE_STATES];
    uint8_t few[8]; /* up to 16 images */
    uint8_t *many;  /* more; owned */
};

int states_init(struct states *s, uint32_t images) STEER_MUSTCHECK; /* all queued */
void states_free(struct states *s);
enum image_state states_get(const struct states *s, uint32_t i);
void states_set(struct states *s, uint32_t i, enum image_state to);
/* The first image from `from` on in that state, or s->images; or before end, or end. */
uint32_t states_find(const struct states *s, uint32_t from, enum image_state state);
uint32_t states_find_to(const struct states *s, uint32_t from, uint32_t end,
                        enum image_state state);
/* The first one that something may still come of (queued, leased, spooled), or end. */
uint32_t states_find_open(const struct states *s, uint32_t from, uint32_t end);

/* A chunk as it is stored: what will not change any more; all else reads as queued. ret has room
 * for STATES_CHUNK / 2 bytes. */
size_t states_pack(const struct states *s, uint32_t chunk, uint8_t *ret);
/* Takes a stored chunk over. STEER_STORE when it does not fit the job. */
int states_unpack(struct states *s, uint32_t chunk, const uint8_t *data,
                  size_t bytes) STEER_MUSTCHECK;

#endif
