/* Rows to shuffled places: out[places[i]] = in[sources[i] - first], past the CPU's cache.
 *
 * The destination is much larger than the cache. A plain store to it first reads the line that it
 * replaces; a streaming store does not, which halves the traffic of the memory.
 */
#include "rows.h"

#include <string.h>

static void scatter_plain(const char *in, int64_t first, const int64_t *sources,
                          const int64_t *places, size_t n, size_t row_bytes, char *out,
                          size_t step_bytes)
{
    for (size_t i = 0; i < n; i++)
        memcpy(out + (size_t)places[i] * step_bytes, in + (size_t)(sources[i] - first) * row_bytes,
               row_bytes);
}

#if defined(__x86_64__)
#include <immintrin.h>

#define LINE 64 /* bytes */

__attribute__((target("avx2")))
static void scatter_streaming(const char *in, int64_t first, const int64_t *sources,
                              const int64_t *places, size_t n, size_t row_bytes, char *out,
                              size_t step_bytes)
{
    for (size_t i = 0; i < n; i++) {
        const char *from = in + (size_t)(sources[i] - first) * row_bytes;
        char *to = out + (size_t)places[i] * step_bytes;
        for (size_t at = 0; at < row_bytes; at += LINE) {
            __m256i low = _mm256_loadu_si256((const __m256i *)(from + at));
            __m256i high = _mm256_loadu_si256((const __m256i *)(from + at + LINE / 2));
            _mm256_stream_si256((__m256i *)(to + at), low);
            _mm256_stream_si256((__m256i *)(to + at + LINE / 2), high);
        }
    }
    _mm_sfence(); /* other threads read what was written */
}

static int can_stream(const char *out, size_t row_bytes, size_t step_bytes)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") &&
           ((uintptr_t)out | row_bytes | step_bytes) % LINE == 0;
}
#else
static int can_stream(const char *out, size_t row_bytes, size_t step_bytes)
{
    (void)out, (void)row_bytes, (void)step_bytes;
    return 0;
}
#define scatter_streaming scatter_plain
#endif

/* Copy rows; `in` has the rows with the source numbers from `first` on. */
void strata_scatter_rows(const char *in, int64_t first, const int64_t *sources,
                         const int64_t *places, size_t n, size_t row_bytes, char *out,
                         size_t step_bytes)
{
    if (can_stream(out, row_bytes, step_bytes))
        scatter_streaming(in, first, sources, places, n, row_bytes, out, step_bytes);
    else
        scatter_plain(in, first, sources, places, n, row_bytes, out, step_bytes);
}
