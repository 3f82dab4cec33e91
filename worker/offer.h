/* offer.h - what a model folder offers a farm: the catalogue entry that a HELLO carries. */
#ifndef WORKER_OFFER_H
#define WORKER_OFFER_H
#include "compute.h"
#include "model.h"
#include "steer.pb-c.h"

/* Owned by the caller: offer_free. NULL: out of memory. Recipes that the folder cannot be sampled
 * with are left out; the folder's default comes first. */
Steerfarm__Model *offer_make(const struct model *m);
/* With one recipe alone, already read for this model. */
Steerfarm__Model *offer_make_one(const struct model *m, const struct recipe *r);
void offer_free(Steerfarm__Model *offer); /* NULL is fine */

/* Calls each for every model in dir, by name: folders with a model_index.json and model files (all
 * that ends in .json); or for dir itself when it is one. Stops at what each returns but 0.
 * STEER_NOT_FOUND for a folder that cannot be read. */
int models_scan(const char *dir, int (*each)(void *data, const char *path), void *data,
                struct steer_error *err) STEER_MUSTCHECK;

/* All models in a folder. One that cannot be read, or that has no recipe of its own (the first that
 * is offered is what a job gets that names none), is logged and left out. */
struct offers {
    Steerfarm__Model **models;
    char **paths;
    size_t count;
    enum compute_weights weights; /* as this worker holds them: told in each offer */
};
/* Adds to *o, which begins zeroed; a name that was already there stays as it was. */
int offers_scan(struct offers *o, const char *dir, struct steer_error *err) STEER_MUSTCHECK;
void offers_free(struct offers *o);
const char *offers_path(const struct offers *o, const char *name); /* NULL: not offered */

#endif
