// SPDX-License-Identifier: Apache-2.0
/* Frames of a stranger: [type] [payload bytes, 0-255] [body] [payload]. What parses packs again to
 * something that parses to the same, and every job is checked. */
#include <string.h>

#include "fuzz.h"
#include "job.h"
#include "limits.h"
#include "wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    uint8_t head[WIRE_HEAD_BYTES];
    wire_head(head, data[0]);
    size_t payload = data[1] < size - 2 ? data[1] : size - 2;
    struct wire_frame frames[3] = {
        {head, sizeof head}, {data + 2, size - 2 - payload}, {data + size - payload, payload}};
    struct wire_message m, again;
    struct steer_error err = {0};
    int count = data[0] == STEERFARM__MESSAGE_TYPE__RESULT ? 3 : 2;
    int code = wire_parse(&m, frames, count, &err);
    if (code) {
        FUZZ_ASSERT(err.code == code && err.text[0]);
        return 0;
    }
    if (m.type == STEERFARM__MESSAGE_TYPE__SUBMIT) {
        const Steerfarm__Submit *submit = (const Steerfarm__Submit *)m.body;
        code = job_check(submit->job, &err);
        FUZZ_ASSERT(!code || err.text[0]);
    }
    uint8_t *packed;
    size_t packed_size;
    FUZZ_ASSERT(wire_pack(m.body, &packed, &packed_size) == 0);
    frames[1] = (struct wire_frame){packed, packed_size};
    /* Packing may be longer than what came (fields left out have no bytes), never by so much that
     * it does not fit any more unless it was close to the limit. */
    code = wire_parse(&again, frames, count, &err);
    FUZZ_ASSERT(!code || packed_size > STEER_BODY_BYTES_MAX);
    if (!code) wire_free(&again);
    free(packed);
    wire_free(&m);
    return 0;
}
