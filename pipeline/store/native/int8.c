/* Decoding of int8 features: out[t][d] = offset[d] + scale[d] * q[t][d], in one pass.
 *
 * The products and sums are float32 and are not fused, so the bits are those of NumPy and torch.
 * float16 results are rounded to nearest even. Compile with -ffp-contract=off.
 */
#include <stddef.h>
#include <stdint.h>

/* Number of the interface: increase it here and in int8.py when a function changes. */
int strata_int8_interface(void) { return 1; }

#if defined(__x86_64__)
#include <immintrin.h>

enum { NONE = 0, AVX2 = 1, AVX512 = 2 };
#define NEAREST (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

/* The best instructions of this machine; 0 if it has none of these. */
int strata_int8_level(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return AVX512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") ? AVX2 : NONE;
}

#define AVX512_TARGET __attribute__((target("avx512f,avx512bw,avx512vl")))

/* 16 values, or the first few of them. */
AVX512_TARGET static inline __m512 decode_16(__m128i q, __m512 offset, __m512 scale)
{
    __m512 steps = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q));
    return _mm512_add_ps(_mm512_mul_ps(steps, scale), offset);
}

/* Past the CPU's cache only to a multiple of 16 bytes. */
AVX512_TARGET static inline void store_16(uint16_t *to, __m256i values, int streams)
{
    if (streams) {
        _mm_stream_si128((__m128i *)to, _mm256_castsi256_si128(values));
        _mm_stream_si128((__m128i *)to + 1, _mm256_extracti128_si256(values, 1));
    } else {
        _mm256_storeu_si256((__m256i *)to, values);
    }
}

AVX512_TARGET
static void decode_avx512(const int8_t *q, size_t n_frames, size_t dim, const float *offset,
                          const float *scale, uint16_t *half, float *single, int streams)
{
    size_t whole = dim / 16 * 16;
    __mmask16 rest = (__mmask16)((1u << (dim - whole)) - 1); /* masked stores are slow: at the end */
    for (size_t t = 0; t < n_frames; t++, q += dim) {
        if (half) {
            for (size_t d = 0; d < whole; d += 16) {
                __m512 x = decode_16(_mm_loadu_si128((const __m128i *)(q + d)),
                                     _mm512_loadu_ps(offset + d), _mm512_loadu_ps(scale + d));
                store_16(half + t * dim + d, _mm512_cvtps_ph(x, NEAREST), streams);
            }
        } else {
            for (size_t d = 0; d < whole; d += 16) {
                __m512 x = decode_16(_mm_loadu_si128((const __m128i *)(q + d)),
                                     _mm512_loadu_ps(offset + d), _mm512_loadu_ps(scale + d));
                _mm512_storeu_ps(single + t * dim + d, x);
            }
        }
        if (rest) {
            __m512 x = decode_16(_mm_maskz_loadu_epi8(rest, q + whole),
                                 _mm512_maskz_loadu_ps(rest, offset + whole),
                                 _mm512_maskz_loadu_ps(rest, scale + whole));
            if (half)
                _mm256_mask_storeu_epi16(half + t * dim + whole, rest, _mm512_cvtps_ph(x, NEAREST));
            else
                _mm512_mask_storeu_ps(single + t * dim + whole, rest, x);
        }
    }
}

__attribute__((target("avx2,f16c")))
static void decode_avx2(const int8_t *q, size_t n_frames, size_t dim, const float *offset,
                        const float *scale, uint16_t *half, float *single, int streams)
{
    for (size_t t = 0; t < n_frames; t++, q += dim) {
        size_t d = 0;
        for (; d + 8 <= dim; d += 8) {
            __m256i steps = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(q + d)));
            __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(steps), _mm256_loadu_ps(scale + d));
            x = _mm256_add_ps(x, _mm256_loadu_ps(offset + d));
            if (half && streams)
                _mm_stream_si128((__m128i *)(half + t * dim + d), _mm256_cvtps_ph(x, NEAREST));
            else if (half)
                _mm_storeu_si128((__m128i *)(half + t * dim + d), _mm256_cvtps_ph(x, NEAREST));
            else
                _mm256_storeu_ps(single + t * dim + d, x);
        }
        for (; d < dim; d++) {
            float x = (float)q[d] * scale[d];
            x += offset[d];
            if (half)
                half[t * dim + d] = _cvtss_sh(x, NEAREST);
            else
                single[t * dim + d] = x;
        }
    }
}

/* Decode [n_frames, dim]; `scales` is [2, dim]: offsets, then scales. One of `half` and `single` is
 * the destination, the other is NULL. `level` is at most that of `strata_int8_level`. With `streams`
 * float16 results bypass the CPU's cache, if their places allow it. */
void strata_int8_decode(int level, const int8_t *q, size_t n_frames, size_t dim,
                        const float *scales, uint16_t *half, float *single, int streams)
{
    streams = streams && half && ((uintptr_t)half | (dim * sizeof *half)) % 16 == 0;
    if (level == AVX512)
        decode_avx512(q, n_frames, dim, scales, scales + dim, half, single, streams);
    else
        decode_avx2(q, n_frames, dim, scales, scales + dim, half, single, streams);
    if (streams)
        _mm_sfence(); /* other threads read what was written */
}

#else

int strata_int8_level(void)
{
    return 0;
}

void strata_int8_decode(int level, const int8_t *q, size_t n_frames, size_t dim,
                        const float *scales, uint16_t *half, float *single, int streams)
{
    (void)level, (void)q, (void)n_frames, (void)dim, (void)scales, (void)half, (void)single;
    (void)streams;
}

#endif
