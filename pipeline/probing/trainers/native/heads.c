/* Steps of Adam of heads of two linear layers, and weighted sums of layers for several heads.
 *
 * With P = W2 W1 and G, the gradient with respect to P, the gradients are W2' G (of W1) and G W1'
 * (of W2). They, the step of Adam and the new P are computed block by block of rows of W1, so that
 * W1 and its moments are read and written once in a step.
 *
 * Weighted sums read the features of an utterance once for all heads.
 *
 * Each head is computed alone and in a fixed order: its numbers do not depend on the other heads.
 * Compile with -ffp-contract=fast -fno-math-errno.
 */
#include "heads.h"

#include <math.h>
#include <string.h>

enum { NONE = 0, AVX2 = 1, AVX512 = 2 };

/* Number of the interface: increase it here and in heads.py when a function or a struct changes. */
int strata_heads_interface(void) { return 1; }

#if defined(__x86_64__)

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#define NAME(name) name##_avx2
#define WIDTH 8
#define DEPTH 2
#define TARGET __attribute__((target("avx2,fma")))
#include "heads_body.h"
#undef NAME
#undef WIDTH
#undef DEPTH
#undef TARGET

#define NAME(name) name##_avx512
#define WIDTH 16
#define DEPTH 4
#define TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma")))
#include "heads_body.h"

/* The best instructions of this machine; 0 if it has none of these. */
int strata_heads_level(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
        return AVX512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? AVX2 : NONE;
}

#define CALL(name, ...) \
    (level == AVX512 ? name##_avx512(__VA_ARGS__) : name##_avx2(__VA_ARGS__))

#else

int strata_heads_level(void) { return NONE; }
#define CALL(name, ...) ((void)level)

#endif

/* out [n_heads][n_rows][dim]: weighted sums of the layers, by mix [n_heads][n_layers]. */
void strata_heads_mix(int level, const struct batch *batch, const float *mix, size_t n_heads,
                      float *out)
{
    CALL(mix_layers, batch, mix, n_heads, out);
}

/* out [n_heads][n_outputs][n_rows]. */
void strata_heads_outputs(int level, const struct head *heads, size_t n_heads,
                          const struct inputs *inputs, float *out)
{
    for (size_t h = 0; h < n_heads; h++)
        CALL(outputs, heads + h, inputs + h, out + h * heads[h].n_outputs * inputs[h].n_rows);
}

/* The gradient of scalars whose softmax is `mix`, from that of the weights. */
static void through_softmax(size_t n, const float *mix, const double *of_weights, float *out)
{
    double mean = 0;
    for (size_t i = 0; i < n; i++)
        mean += mix[i] * of_weights[i];
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(mix[i] * (of_weights[i] - mean));
}

/* Take a step of every head.
 *
 * errors: gradient with respect to the outputs, [n_heads][n_outputs][n_rows].
 * by: settings of each head.
 * batch, mix, of_inputs, sums: for weighted sums, else NULL: the features that were mixed, the
 * weights, and memory of n_heads * n_rows * dim and n_heads * n_layers values.
 * scratch: (n_outputs + 4) * (dim + 1) + 4 * n_outputs + n_layers values.
 */
void strata_heads_learn(int level, const struct head *heads, size_t n_heads,
                        const struct inputs *inputs, const struct batch *batch, const float *mix,
                        const float *errors, const struct adam *by, float *of_inputs, double *sums,
                        float *scratch)
{
    const size_t n_outputs = heads->n_outputs, n = inputs->n_rows, dim = heads->dim;
    float *g = scratch, *g_bias = g + n_outputs * dim, *g_scalars = g_bias + n_outputs;
    float *rest = g_scalars + heads->n_scalars;
    if (batch) {
        for (size_t h = 0; h < n_heads; h++)
            CALL(input_gradient, heads + h, n, errors + h * n_outputs * n, of_inputs + h * n * dim,
                 rest);
        CALL(mix_gradient, batch, of_inputs, n_heads, sums);
    }
    for (size_t h = 0; h < n_heads; h++) {
        const size_t n_layers = heads[h].n_scalars;
        CALL(product_gradient, heads + h, inputs + h, errors + h * n_outputs * n, g, g_bias);
        if (batch)
            through_softmax(n_layers, mix + h * n_layers, sums + h * n_layers, g_scalars);
        const struct gradients gradients = {g, g_bias, g_scalars};
        CALL(step, heads + h, &gradients, by + h, rest);
    }
}
