/* prompt_syntax.h - a prompt as its author weighs it: pieces of text, each with a factor.
 *
 * PROMPT_A1111 reads what people write for A1111's web UI (stable-diffusion-webui 1.10,
 * modules/prompt_parser.py, prompt attention):
 *
 *     (text)      times 1.1; nested ones multiply     \( \) \[ \] \\   the sign itself
 *     [text]      times 1/1.1                         BREAK            what follows begins a chunk
 *     (text:1.3)  times 1.3
 *
 * A bracket that is never closed reaches to the end, one that was never opened is text, and so is
 * a colon without a number and a round bracket behind it. Neighbours of one weight become one
 * piece, so that a word may be written across brackets. Unlike there, BREAK is one inside brackets
 * too (its web UI reads it as the word "break" then).
 *
 * What else a prompt may hold there is refused by name, as a picture without it would be another:
 * prompt editing [from:to:0.5], alternation [a|b], AND, extra networks <lora:name:1>. */
#ifndef WORKER_PROMPT_SYNTAX_H
#define WORKER_PROMPT_SYNTAX_H
#include <stddef.h>

#include "error.h"

enum prompt_syntax { PROMPT_PLAIN, PROMPT_A1111 };

struct prompt_piece {
    size_t begin, end; /* bytes of prompt.text; none of a BREAK */
    double weight;
    int is_break;
};

struct prompt {
    char *text;     /* without brackets, weights and backslashes; its ends are the pieces' */
    size_t *source; /* for each byte of text, which one of the prompt as written it was */
    struct prompt_piece *pieces; /* none is empty but BREAK */
    size_t count;
};

/* text is UTF-8. BAD_TEXT for what is refused, BAD_VALUE for a weight that is no number or beyond
 * STEER_PROMPT_WEIGHT_MAX. The caller frees it with prompt_free. */
int prompt_parse(struct prompt *ret, const char *text, enum prompt_syntax syntax,
                 struct steer_error *err) STEER_MUSTCHECK;
void prompt_free(struct prompt *p); /* of a zeroed one too */

#endif
