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

/* Take a step of a head. scratch: 4 * (dim + n_outputs) values. */
void strata_heads_step(int level, const struct head *head, const struct gradients *gradients,
                       const struct adam *by, float *scratch)
{
    CALL(step, head, gradients, by, scratch);
}

/* out [n_heads][n_rows][dim]: weighted sums of the layers, by mix [n_heads][n_layers]. */
void strata_heads_mix(int level, const struct batch *batch, const float *mix, size_t n_heads,
                      float *out)
{
    CALL(mix_layers, batch, mix, n_heads, out);
}

/* out [n_heads][n_layers]: products of each layer with inputs [n_heads][n_rows][dim]. */
void strata_heads_mix_gradient(int level, const struct batch *batch, const float *inputs,
                               size_t n_heads, double *out)
{
    CALL(mix_gradient, batch, inputs, n_heads, out);
}
