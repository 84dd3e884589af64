/* One step of the model: the layer loop over the backend's operators. */
#ifndef ENGINE_FORWARD_H
#define ENGINE_FORWARD_H

#include "kernels/kernels.h"

/* Computes the step and writes step->sampled. Errors: those of begin and end. Engine thread. */
err_t forward_step(struct kernels *k, int32_t n_layers, const struct step *step);

#endif
