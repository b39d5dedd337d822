/* Consecutive rows to shuffled places: row i to the address to[i] + shift, past the CPU's cache.
 *
 * The destinations are much larger than the cache. A plain store to them first reads the line that
 * it replaces; a streaming store does not, which halves the traffic of the memory.
 */
#include "rows.h"

#include <string.h>

/* Number of the interface: increase it here and in rows.py when a function changes. */
int strata_rows_interface(void) { return 1; }

static void place_plain(const char *in, const uintptr_t *to, size_t n, size_t row_bytes,
                        size_t shift)
{
    for (size_t i = 0; i < n; i++, in += row_bytes)
        if (to[i])
            memcpy((char *)to[i] + shift, in, row_bytes);
}

#if defined(__x86_64__)
#include <immintrin.h>

#define LINE 64 /* bytes */

__attribute__((target("avx2")))
static void place_streaming(const char *in, const uintptr_t *to, size_t n, size_t row_bytes,
                            size_t shift)
{
    for (size_t i = 0; i < n; i++, in += row_bytes) {
        char *out = (char *)to[i] + shift;
        for (size_t at = 0; to[i] && at < row_bytes; at += LINE) {
            __m256i low = _mm256_loadu_si256((const __m256i *)(in + at));
            __m256i high = _mm256_loadu_si256((const __m256i *)(in + at + LINE / 2));
            _mm256_stream_si256((__m256i *)(out + at), low);
            _mm256_stream_si256((__m256i *)(out + at + LINE / 2), high);
        }
    }
    _mm_sfence(); /* other threads read what was written */
}

static int can_stream(uintptr_t alignment)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && alignment % LINE == 0;
}
#else
static int can_stream(uintptr_t alignment)
{
    (void)alignment;
    return 0;
}
#define place_streaming place_plain
#endif

/* Copy rows. A row whose address is 0 is left out; `alignment` is a number that is a multiple of
 * 64 if all addresses, `row_bytes` and `shift` are. */
void strata_place_rows(const char *in, const uintptr_t *to, size_t n, size_t row_bytes,
                       size_t shift, uintptr_t alignment)
{
    if (can_stream(alignment))
        place_streaming(in, to, n, row_bytes, shift);
    else
        place_plain(in, to, n, row_bytes, shift);
}
