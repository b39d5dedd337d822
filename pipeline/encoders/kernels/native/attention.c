/* Attention within each clip of a packed batch, for CPUs with AVX-512.
 *
 * The scores of a block of queries with all keys of the clip are computed at once, and stay in the
 * cache until the values are weighted with them. Keys and values are copied to the layout of the
 * products first: rows of 32-bit words, of which each holds one float32, or two bfloat16 that one
 * instruction multiplies and adds to a float32.
 *
 * The numbers of a query depend on its clip alone: neither on the other clips, nor on the number of
 * threads. Compile with -ffp-contract=off.
 */
#include "attention.h"

#include <string.h>

enum { NONE = 0, FLOAT32 = 1, BFLOAT16 = 2 };

/* Number of the interface: increase it here and in attention.py when a function or struct changes. */
int strata_attention_interface(void) { return 1; }

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#include <cpuid.h>
#include <immintrin.h>
#include <stdatomic.h>

enum {
    HEAD_DIM = 64,
    KEYS = 48,        /* of a tile of scores: three vectors; the last tile may have fewer */
    QUERIES = 24,     /* of a block: their scores with all keys are held */
    QUERY_TILE = 8,   /* rows of a tile of scores: 24 sums are held in registers */
    VALUE_TILE = 6,   /* rows of a tile of weighted values: 24 sums */
    VALUE_DEPTH = 96, /* words of values that are summed before the sum is stored: 24 kB */
    SHARE = 240,      /* queries of a clip and head that a thread takes at once */
};

#define AVX512 "avx512f,avx512bw,avx512vl,avx512dq"
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE int64_t round_up(int64_t n, int64_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* exp(x) for x <= 0, and NaN for NaN, to about one unit in the last place. */
__attribute__((target(AVX512))) INLINE __m512 exponential(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x); /* of a NaN, the second argument is the result */
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x); /* x - n ln 2, in two parts */
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
    __m512 sum = _mm512_set1_ps(1.0f / 5040);
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / 720));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / 120));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / 24));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / 6));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(0.5f));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, n);
}

/* Turn the scores of a query into exp(score - largest), and return their sum.
 *
 * n: Number of keys; up to a multiple of 16 the results are too small to count.
 * bias: Added to the scores after it is multiplied with `gate`, or NULL.
 */
__attribute__((target(AVX512))) static float exponentials(float *scores, int64_t n, float scale,
                                                          float gate, const float *bias)
{
    const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
    __m512 largest = lowest, sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 is_key = n - j >= 16 ? 0xffff : (1 << (n - j)) - 1;
        __m512 score = _mm512_mul_ps(_mm512_load_ps(scores + j), _mm512_set1_ps(scale));
        if (bias)
            score = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(is_key, bias + j), _mm512_set1_ps(gate),
                                    score);
        score = _mm512_mask_blend_ps(is_key, lowest, score);
        _mm512_store_ps(scores + j, score);
        largest = _mm512_max_ps(largest, score);
    }
    largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    for (int64_t j = 0; j < n; j += 16) {
        const __m512 weight = exponential(_mm512_sub_ps(_mm512_load_ps(scores + j), largest));
        _mm512_store_ps(scores + j, weight);
        sum = _mm512_add_ps(sum, weight);
    }
    return _mm512_reduce_add_ps(sum);
}

/* Transpose 16 rows of 16 words. */
__attribute__((target(AVX512))) INLINE void transpose(__m512i row[16])
{
    __m512i t[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        row[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        row[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        row[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        row[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) { /* blocks of four words: the even ones, then the odd ones */
        t[i] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0xdd);
    }
    UNROLL for (int i = 0; i < 8; i++) {
        row[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        row[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

/* Lay out n keys, `words` words each and `stride` words apart, as [tile][words][KEYS]. */
__attribute__((target(AVX512))) static void lay_out_keys(const uint32_t *keys, int64_t stride,
                                                         int64_t n, int words, uint32_t *out)
{
    for (int64_t j = 0; j < n; j += 16) {
        uint32_t *tile = out + j / KEYS * KEYS * words + j % KEYS;
        for (int first = 0; first < words; first += 16) {
            __m512i rows[16];
            for (int i = 0; i < 16; i++)
                rows[i] = j + i < n ? _mm512_loadu_si512(keys + (j + i) * stride + first)
                                    : _mm512_setzero_si512();
            transpose(rows);
            for (int i = 0; i < 16; i++)
                _mm512_store_si512(tile + (first + i) * KEYS, rows[i]);
        }
    }
}

#define NAME(name) name##_float32
#define TARGET __attribute__((target(AVX512)))
#define PER_WORD 1
#include "attention_body.h"
#undef NAME
#undef TARGET
#undef PER_WORD

#define NAME(name) name##_bfloat16
#define TARGET __attribute__((target(AVX512 ",avx512bf16")))
#define PER_WORD 2
#include "attention_body.h"

struct work {
    const struct attention *of;
    atomic_long next_share, next_thread;
};

/* The work of one thread: shares of queries of a clip and head, until none is left. */
static void attend(void *data)
{
    struct work *work = data;
    const struct attention *of = work->of;
    const int64_t thread = atomic_fetch_add(&work->next_thread, 1);
    char *scratch = (char *)of->scratch + thread * strata_attention_scratch(of->longest);
    for (;;) {
        const int64_t share = atomic_fetch_add(&work->next_share, 1);
        int64_t clip = 0, part = share / of->n_heads;
        for (; clip < of->n_clips; clip++) {
            const int64_t n_parts = round_up(of->counts[clip], SHARE) / SHARE;
            if (part < n_parts)
                break;
            part -= n_parts;
        }
        if (clip == of->n_clips)
            return;
        (of->dtype == FLOAT32 ? attend_float32 : attend_bfloat16)(
            of, clip, share % of->n_heads, part * SHARE, scratch);
    }
}

/* The dtypes that are computed here, added up; 0 if the CPU lacks the instructions.
 *
 * bfloat16 is left to torch on CPUs with AMX, whose products are faster than those here.
 */
int strata_attention_dtypes(void)
{
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")))
        return NONE;
    unsigned eax, ebx, ecx, edx;
    const int has_amx = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 22 & 1);
    const int has_bfloat16 = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 5 & 1);
    return FLOAT32 + (has_bfloat16 && !has_amx ? BFLOAT16 : 0);
}

/* Bytes of memory that each thread needs, a multiple of 64, for clips of at most `longest` frames. */
int64_t strata_attention_scratch(int64_t longest)
{
    const int64_t padded = round_up(longest, KEYS);
    return 4 * (2 * padded * HEAD_DIM + padded * QUERIES + 2 * QUERIES * HEAD_DIM);
}

/* Attend on `n_threads` threads, which `parallel` (GOMP_parallel of OpenMP) starts. */
void strata_attention_run(const struct attention *of, parallel_function *parallel,
                          unsigned n_threads)
{
    struct work work = {.of = of};
    if (n_threads > 1)
        parallel(attend, &work, n_threads, 0);
    else
        attend(&work);
}

#else

int strata_attention_dtypes(void) { return NONE; }
int64_t strata_attention_scratch(int64_t longest) { return 0 * longest; }
void strata_attention_run(const struct attention *of, parallel_function *parallel,
                          unsigned n_threads)
{
    (void)of, (void)parallel, (void)n_threads;
}

#endif
