/* The functions of attention.c for one dtype: NAME, TARGET and PER_WORD are set.
 *
 * A word holds PER_WORD values: neighbours in a query and a key, and the weights, or values, of
 * neighbouring keys.
 */

#if PER_WORD == 1
typedef float NAME(value);
#define ADD_PRODUCT(sum, a, b) \
    _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
#else
typedef uint16_t NAME(value);
#define ADD_PRODUCT(sum, a, b) _mm512_dpbf16_ps(sum, (__m512bh)(a), (__m512bh)(b))
#endif
#define value NAME(value)
#define WORDS (HEAD_DIM / PER_WORD)

/* Store 16 values in the dtype, at any address. */
TARGET INLINE void NAME(store)(value *to, __m512 values)
{
#if PER_WORD == 1
    _mm512_storeu_ps(to, values);
#else
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(values));
#endif
}

/* scores[QUERY_TILE][16 n] = queries[QUERY_TILE][WORDS] times the first keys of [WORDS][KEYS]. */
TARGET INLINE void NAME(score_vectors)(int n, const uint32_t *queries, const uint32_t *keys,
                                       float *scores, int64_t stride)
{
    __m512 sums[QUERY_TILE][3];
    UNROLL for (int i = 0; i < QUERY_TILE; i++)
        UNROLL for (int k = 0; k < n; k++)
            sums[i][k] = _mm512_setzero_ps();
    for (int w = 0; w < WORDS; w++) {
        __m512i key[3];
        UNROLL for (int k = 0; k < n; k++)
            key[k] = _mm512_load_si512(keys + w * KEYS + 16 * k);
        UNROLL for (int i = 0; i < QUERY_TILE; i++) {
            const __m512i query = _mm512_set1_epi32((int)queries[i * WORDS + w]);
            UNROLL for (int k = 0; k < n; k++)
                sums[i][k] = ADD_PRODUCT(sums[i][k], query, key[k]);
        }
    }
    UNROLL for (int i = 0; i < QUERY_TILE; i++)
        UNROLL for (int k = 0; k < n; k++)
            _mm512_store_ps(scores + i * stride + 16 * k, sums[i][k]);
}

/* Score a tile of which `n_keys` are left, rounded up to 16. */
TARGET static void NAME(score)(int64_t n_keys, const uint32_t *queries, const uint32_t *keys,
                               float *scores, int64_t stride)
{
    if (n_keys > 32)
        NAME(score_vectors)(3, queries, keys, scores, stride);
    else if (n_keys > 16)
        NAME(score_vectors)(2, queries, keys, scores, stride);
    else
        NAME(score_vectors)(1, queries, keys, scores, stride);
}

/* sums[VALUE_TILE][HEAD_DIM] += weights[VALUE_TILE][n] times values[n][HEAD_DIM], in words. */
TARGET static void NAME(add_values)(const uint32_t *weights, int64_t stride, const uint32_t *values,
                                    int64_t n, float *sums)
{
    __m512 added[VALUE_TILE][4];
    UNROLL for (int i = 0; i < VALUE_TILE; i++)
        UNROLL for (int k = 0; k < 4; k++)
            added[i][k] = _mm512_setzero_ps();
    for (int64_t j = 0; j < n; j++) {
        __m512i part[4];
        UNROLL for (int k = 0; k < 4; k++)
            part[k] = _mm512_load_si512(values + j * HEAD_DIM + 16 * k);
        UNROLL for (int i = 0; i < VALUE_TILE; i++) {
            const __m512i weight = _mm512_set1_epi32((int)weights[i * stride + j]);
            UNROLL for (int k = 0; k < 4; k++)
                added[i][k] = ADD_PRODUCT(added[i][k], weight, part[k]);
        }
    }
    UNROLL for (int i = 0; i < VALUE_TILE; i++)
        UNROLL for (int k = 0; k < 4; k++) {
            float *sum = sums + i * HEAD_DIM + 16 * k;
            _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), added[i][k]));
        }
}

/* Lay out the values of n keys, `stride` apart, as words [keys][HEAD_DIM]. */
TARGET static void NAME(lay_out_values)(const value *values, int64_t stride, int64_t n,
                                        uint32_t *out)
{
#if PER_WORD == 1
    for (int64_t j = 0; j < n; j++)
        memcpy(out + j * HEAD_DIM, values + j * stride, 4 * HEAD_DIM);
#else
    const __m512i none = _mm512_setzero_si512();
    for (int64_t j = 0; j < n; j += 2, out += HEAD_DIM)
        for (int k = 0; k < HEAD_DIM; k += 16) { /* the first key's value is the lower half */
            const value *first = values + j * stride + k;
            const __m256i even = _mm256_loadu_si256((const __m256i *)first);
            const __m512i low = _mm512_cvtepu16_epi32(even);
            __m512i high = none;
            if (j + 1 < n)
                high = _mm512_slli_epi32(
                    _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(first + stride))),
                    16);
            _mm512_store_si512(out + k, _mm512_or_si512(low, high));
        }
#endif
}

/* Attend from up to SHARE queries of a clip, from `first_query` on, in one head. */
TARGET static void NAME(attend)(const struct attention *of, int64_t clip, int64_t head,
                                int64_t first_query, void *scratch)
{
    const int64_t n = of->counts[clip], dim = of->n_heads * HEAD_DIM, stride = 3 * dim;
    const int64_t padded = round_up(n, KEYS), n_words = round_up(n, PER_WORD) / PER_WORD;
    const int64_t end = first_query + SHARE < n ? first_query + SHARE : n;
    const value *projected =
        (const value *)of->projected + of->starts[clip] * stride + head * HEAD_DIM;
    uint32_t *keys = scratch, *values = keys + padded * WORDS;
    float *scores = (float *)(values + padded * WORDS), *sums = scores + padded * QUERIES;
    uint32_t *queries = (uint32_t *)(sums + QUERIES * HEAD_DIM);

    lay_out_keys((const uint32_t *)(projected + dim), stride / PER_WORD, n, WORDS, keys);
    NAME(lay_out_values)(projected + 2 * dim, stride, n, values);
    for (int64_t i = first_query; i < end; i += QUERIES) {
        const int64_t n_queries = end - i < QUERIES ? end - i : QUERIES;
        memset(queries, 0, 4 * QUERIES * WORDS);
        for (int64_t q = 0; q < n_queries; q++)
            memcpy(queries + q * WORDS, projected + (i + q) * stride, 4 * WORDS);
        for (int64_t j = 0; j < n; j += KEYS)
            for (int64_t q = 0; q < n_queries; q += QUERY_TILE)
                NAME(score)(n - j, queries + q * WORDS, keys + j * WORDS, scores + q * padded + j,
                            padded);

        float total[QUERIES];
        for (int64_t q = 0; q < n_queries; q++) {
            float *row = scores + q * padded, gate = 0;
            const float *bias = NULL;
            if (of->gates) {
                gate = of->gates[(of->starts[clip] + i + q) * of->n_heads + head];
                bias = of->bias + head * (2 * of->longest - 1) + of->longest - 1 - (i + q);
            }
            total[q] = exponentials(row, n, 0.125f, gate, bias); /* 1 / sqrt(HEAD_DIM) */
            if (PER_WORD == 2)
                for (int64_t j = 0; j < n; j += 16) /* behind what is read */
                    NAME(store)((value *)row + j, _mm512_load_ps(row + j));
        }

        memset(sums, 0, 4 * QUERIES * HEAD_DIM);
        for (int64_t j = 0; j < n_words; j += VALUE_DEPTH) {
            const int64_t depth = n_words - j < VALUE_DEPTH ? n_words - j : VALUE_DEPTH;
            for (int64_t q = 0; q < n_queries; q += VALUE_TILE)
                NAME(add_values)((const uint32_t *)(scores + q * padded) + j, padded,
                                 values + j * HEAD_DIM, depth, sums + q * HEAD_DIM);
        }
        for (int64_t q = 0; q < n_queries; q++) {
            value *mixed = (value *)of->mixed + (of->starts[clip] + i + q) * dim + head * HEAD_DIM;
            for (int k = 0; k < HEAD_DIM; k += 16)
                NAME(store)(mixed + k, _mm512_div_ps(_mm512_load_ps(sums + q * HEAD_DIM + k),
                                                     _mm512_set1_ps(total[q])));
        }
    }
}

#undef value
#undef WORDS
#undef ADD_PRODUCT
