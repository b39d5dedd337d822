/* Steps of Adam of stacked heads; see heads.c. */
#ifndef STRATA_HEADS_H
#define STRATA_HEADS_H

#include <stddef.h>
#include <stdint.h>

/* Parameters of a layer, and the moments of their gradients. */
struct layer {
    float *value, *mean, *square;
};

/* A head, outputs = W2 (W1 x + b1) + b2: W1 [projection][dim], b1, W2 transposed to
 * [projection][n_outputs], b2, and the scalars of a weighted sum. `product` is W2 W1 [n_outputs][dim],
 * `product_bias` W2 b1 + b2. dim is a multiple of 16 and projection one of 4. */
struct head {
    size_t n_outputs, projection, dim, n_scalars;
    struct layer layers[5];
    float *product, *product_bias;
};

struct adam {
    float beta1, beta2, eps;
    float step_size;  /* learning rate / (1 - beta1^t) */
    float root_scale; /* 1 / sqrt(1 - beta2^t) */
};

/* Gradients with respect to the product, its bias and the scalars. */
struct gradients {
    const float *product, *product_bias, *scalars;
};

/* Features of some utterances: rows of [n_layers][n_utterances][dim]. */
struct batch {
    const float *features;
    size_t n_layers, n_utterances, dim;
    const int64_t *rows;
    size_t n_rows;
};

/* The inputs of a head: rows of [][dim], or the first ones where `rows` is NULL. */
struct inputs {
    const float *base;
    const int64_t *rows;
    size_t n_rows;
};

int strata_heads_level(void);
void strata_heads_mix(int level, const struct batch *batch, const float *mix, size_t n_heads,
                      float *out);
void strata_heads_outputs(int level, const struct head *heads, size_t n_heads,
                          const struct inputs *inputs, float *out);
void strata_heads_learn(int level, const struct head *heads, size_t n_heads,
                        const struct inputs *inputs, const struct batch *batch, const float *mix,
                        const float *errors, const struct adam *by, float *of_inputs, double *sums,
                        float *scratch);

#endif
