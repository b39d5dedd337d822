/* What attention.py passes to attention.c. */
#include <stddef.h>
#include <stdint.h>

struct attention {
    int64_t dtype;         /* FLOAT32 or BFLOAT16 */
    const void *projected; /* queries, keys and values, [n_rows][3][n_heads][64] */
    void *mixed;           /* the result, [n_rows][n_heads][64] */
    const float *gates;    /* factors of the bias, [n_rows][n_heads], or NULL */
    const float *bias;     /* of key j and query i at j - i + longest - 1: [n_heads][2 longest - 1] */
    const int64_t *starts; /* first row of each clip */
    const int64_t *counts; /* rows of each clip */
    int64_t n_clips, n_heads;
    int64_t longest; /* rows of the longest clip */
    void *scratch;   /* memory of every thread, at a multiple of 64 bytes */
};

/* Calls a function on several threads and waits for them, as GOMP_parallel of OpenMP. */
typedef void parallel_function(void (*function)(void *), void *data, unsigned n_threads,
                               unsigned flags);

int64_t strata_attention_scratch(int64_t longest);
