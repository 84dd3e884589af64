#include "compress/base_loss.h"

#include <stdlib.h>
#include <string.h>

/* As many rows as `like` has: those of `own`, then those of `like` that it lacks. */
static err_t resize(struct train *t, const struct train_weights *own,
                    const struct train_weights *like, struct train_weights *out) {
    size_t row = (size_t)own->k * t->ops->weight_bytes, all = (size_t)like->n * row,
           have = own->n < like->n ? (size_t)own->n * row : all;
    *out = (struct train_weights){NULL, like->n, own->k};
    err_t e = t->ops->take(t, all, &out->w);
    if (!e) {
        t->ops->copy(t, out->w, own->w, have);
        t->ops->copy(t, (char *)out->w + have, (const char *)like->w + have, all - have);
    }
    return e;
}

err_t base_loss(const struct llama *base, const struct llama *teacher, const struct lesson *held,
                struct train_loss *sum, struct progress *p, struct why *why) {
    struct train *t = base->t;
    int32_t embed = llama_embed(base), head = llama_head(base);
    const struct train_weights *target = &teacher->matrix[head];
    if (target->n == base->matrix[head].n)
        return fit_judge(base, teacher, held, sum, p, why);
    struct llama wide = *base;
    struct train_weights rows = {0}, outputs = {0};
    wide.config.shape.vocab = wide.config.shape.max_vocab = target->n;
    wide.config.tied = false;
    wide.matrix = malloc((size_t)base->n_matrices * sizeof *wide.matrix);
    err_t e =
        wide.matrix ? resize(t, &base->matrix[embed], &teacher->matrix[embed], &rows) : E_NOMEM;
    e = e ? e : resize(t, &base->matrix[head], target, &outputs);
    if (e) {
        why_set(why, e, "There is not enough memory to judge the base.");
    } else {
        memcpy(wide.matrix, base->matrix, (size_t)base->n_matrices * sizeof *wide.matrix);
        wide.matrix[embed] = rows;
        wide.matrix[head] = outputs;
        e = fit_judge(&wide, teacher, held, sum, p, why);
    }
    t->ops->give(t, rows.w), t->ops->give(t, outputs.w);
    free(wide.matrix);
    return e;
}
