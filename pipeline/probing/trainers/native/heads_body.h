/* The functions of heads.c for one kind of instructions: NAME, WIDTH, DEPTH and TARGET are set. */

enum { NAME(ROWS) = 4 };
#define ROWS NAME(ROWS)
#define lanes NAME(lanes)
typedef float lanes __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#define AT(pointer) (*(lanes *)(pointer))
#define IN(pointer) (*(const lanes *)(pointer))

TARGET INLINE void NAME(update)(struct layer of, size_t first, size_t n,
                                const float *restrict gradient, struct adam by)
{
    float *restrict value = of.value + first;
    float *restrict mean = of.mean + first, *restrict square = of.square + first;
    for (size_t i = 0; i < n; i++) {
        float g = gradient[i];
        mean[i] += (1 - by.beta1) * (g - mean[i]);
        square[i] = by.beta2 * square[i] + (1 - by.beta2) * g * g;
        value[i] -= by.step_size * mean[i] / (sqrtf(square[i]) * by.root_scale + by.eps);
    }
}

TARGET INLINE float NAME(sum_of)(const lanes *x)
{
    float sums[WIDTH];
    memcpy(sums, x, sizeof sums);
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            sums[i] += sums[i + half];
    return sums[0];
}

/* Sums of `n` rows of g for ROWS of the results: out[r] = sum over k of by[r][k] g[k]. */
TARGET INLINE void NAME(combine)(size_t n, size_t dim, const float *restrict g,
                                 const float *restrict by, size_t row_stride, size_t stride,
                                 float *restrict out)
{
    for (size_t j = 0; j < dim; j += WIDTH) {
        lanes sums[ROWS] = {0};
        for (size_t k = 0; k < n; k++) {
            lanes values = IN(g + k * dim + j);
            UNROLL for (int r = 0; r < ROWS; r++)
                sums[r] += values * by[r * row_stride + k * stride];
        }
        UNROLL for (int r = 0; r < ROWS; r++)
            AT(out + r * dim + j) = sums[r];
    }
}

/* Products of ROWS rows with `depth` rows of g: out[r][k] = x[r] . g[k]. */
TARGET INLINE void NAME(dots)(int depth, size_t dim, const float *restrict g,
                              const float *const *restrict x, float *restrict out, size_t stride)
{
    lanes sums[ROWS][DEPTH] = {0};
    for (size_t j = 0; j < dim; j += WIDTH) {
        lanes values[DEPTH];
        UNROLL for (int k = 0; k < depth; k++)
            values[k] = IN(g + k * dim + j);
        UNROLL for (int r = 0; r < ROWS; r++) {
            lanes of_row = IN(x[r] + j);
            UNROLL for (int k = 0; k < depth; k++)
                sums[r][k] += values[k] * of_row;
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int k = 0; k < depth; k++)
            out[r * stride + k] = NAME(sum_of)(&sums[r][k]);
}

/* `depth` sums of ROWS rows, added: p[k] += sum over r of by[r][k] x[r]. */
TARGET INLINE void NAME(add)(int depth, size_t dim, float *restrict p,
                             const float *const *restrict x, const float *restrict by,
                             size_t row_stride, size_t stride)
{
    for (size_t j = 0; j < dim; j += WIDTH) {
        lanes values[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++)
            values[r] = IN(x[r] + j);
        UNROLL for (int k = 0; k < depth; k++) {
            lanes total = IN(p + k * dim + j);
            UNROLL for (int r = 0; r < ROWS; r++)
                total += values[r] * by[r * row_stride + k * stride];
            AT(p + k * dim + j) = total;
        }
    }
}

/* All rows of g, or of p, in steps of DEPTH. */
#define EACH_DEPTH(function, n, first, ...)                                                       \
    do {                                                                                          \
        size_t first = 0;                                                                         \
        for (; first + DEPTH <= (n); first += DEPTH)                                              \
            NAME(function)(DEPTH, __VA_ARGS__);                                                   \
        for (; first < (n); first++)                                                              \
            NAME(function)(1, __VA_ARGS__);                                                       \
    } while (0)

TARGET static void NAME(step)(const struct head *head, const struct gradients *gradients,
                              const struct adam *settings, float *scratch)
{
    const struct adam by = *settings;
    const size_t n_outputs = head->n_outputs, dim = head->dim;
    const struct layer first = head->layers[0], first_bias = head->layers[1];
    const struct layer last = head->layers[2], last_bias = head->layers[3];
    const float *g = gradients->product, *g_bias = gradients->product_bias;
    float *p = head->product, *p_bias = head->product_bias;
    float *rows = scratch, *dots = scratch + ROWS * dim;
    memset(p, 0, n_outputs * dim * sizeof *p);
    memset(p_bias, 0, n_outputs * sizeof *p_bias);
    for (size_t i = 0; i < head->projection; i += ROWS) {
        float *w1 = first.value + i * dim, *w2 = last.value + i * n_outputs;
        float *b1 = first_bias.value + i, b1_gradient[ROWS] = {0};
        const float *const x[] = {w1, w1 + dim, w1 + 2 * dim, w1 + 3 * dim};
        NAME(combine)(n_outputs, dim, g, w2, n_outputs, 1, rows);
        EACH_DEPTH(dots, n_outputs, k, dim, g + k * dim, x, dots + k, n_outputs);
        for (size_t r = 0; r < ROWS; r++)
            for (size_t k = 0; k < n_outputs; k++) {
                b1_gradient[r] += w2[r * n_outputs + k] * g_bias[k];
                dots[r * n_outputs + k] += g_bias[k] * b1[r];
            }
        NAME(update)(first, i * dim, ROWS * dim, rows, by);
        NAME(update)(first_bias, i, ROWS, b1_gradient, by);
        NAME(update)(last, i * n_outputs, ROWS * n_outputs, dots, by);
        EACH_DEPTH(add, n_outputs, k, dim, p + k * dim, x, w2 + k, n_outputs, 1);
        for (size_t k = 0; k < n_outputs; k++)
            for (size_t r = 0; r < ROWS; r++)
                p_bias[k] += w2[r * n_outputs + k] * b1[r];
    }
    NAME(update)(last_bias, 0, n_outputs, g_bias, by);
    for (size_t k = 0; k < n_outputs; k++)
        p_bias[k] += last_bias.value[k];
    if (head->n_scalars)
        NAME(update)(head->layers[4], 0, head->n_scalars, gradients->scalars, by);
}

/* Weighted sums of one utterance, for up to ROWS heads. */
TARGET INLINE void NAME(mix_row)(int n_heads, const struct batch *batch, const float *x,
                                 const float *mix, float *out)
{
    const size_t dim = batch->dim, n_layers = batch->n_layers;
    const size_t layer = batch->n_utterances * dim, head = batch->n_rows * dim;
    for (size_t j = 0; j < dim; j += WIDTH) {
        lanes sums[ROWS] = {0};
        for (size_t i = 0; i < n_layers; i++) {
            lanes values = IN(x + i * layer + j);
            UNROLL for (int h = 0; h < n_heads; h++)
                sums[h] += values * mix[h * n_layers + i];
        }
        UNROLL for (int h = 0; h < n_heads; h++)
            AT(out + h * head + j) = sums[h];
    }
}

TARGET static void NAME(mix_layers)(const struct batch *batch, const float *mix, size_t n_heads,
                                    float *out)
{
    const size_t dim = batch->dim, head = batch->n_rows * dim;
    for (size_t row = 0; row < batch->n_rows; row++) {
        const float *x = batch->features + (size_t)batch->rows[row] * dim;
        size_t h = 0;
        for (; h + ROWS <= n_heads; h += ROWS)
            NAME(mix_row)(ROWS, batch, x, mix + h * batch->n_layers, out + h * head + row * dim);
        for (; h < n_heads; h++)
            NAME(mix_row)(1, batch, x, mix + h * batch->n_layers, out + h * head + row * dim);
    }
}

/* Products of the layers of one utterance with the inputs of up to ROWS heads. */
TARGET INLINE void NAME(multiply_row)(int n_heads, const struct batch *batch, const float *x,
                                      const float *inputs, double *out)
{
    const size_t dim = batch->dim, n_layers = batch->n_layers;
    const size_t layer = batch->n_utterances * dim, head = batch->n_rows * dim;
    for (size_t i = 0; i < n_layers; i++) {
        lanes sums[ROWS] = {0};
        for (size_t j = 0; j < dim; j += WIDTH) {
            lanes values = IN(x + i * layer + j);
            UNROLL for (int h = 0; h < n_heads; h++)
                sums[h] += values * IN(inputs + h * head + j);
        }
        UNROLL for (int h = 0; h < n_heads; h++)
            out[h * n_layers + i] += NAME(sum_of)(&sums[h]);
    }
}

TARGET static void NAME(mix_gradient)(const struct batch *batch, const float *inputs,
                                      size_t n_heads, double *out)
{
    const size_t dim = batch->dim, head = batch->n_rows * dim, n_layers = batch->n_layers;
    memset(out, 0, n_heads * n_layers * sizeof *out);
    for (size_t row = 0; row < batch->n_rows; row++) {
        const float *x = batch->features + (size_t)batch->rows[row] * dim;
        const float *of_row = inputs + row * dim;
        size_t h = 0;
        for (; h + ROWS <= n_heads; h += ROWS)
            NAME(multiply_row)(ROWS, batch, x, of_row + h * head, out + h * n_layers);
        for (; h < n_heads; h++)
            NAME(multiply_row)(1, batch, x, of_row + h * head, out + h * n_layers);
    }
}

/* ROWS of the inputs from one on; after the end the last one again. */
TARGET INLINE void NAME(take_rows)(const struct inputs *inputs, size_t dim, size_t first,
                                   const float **x)
{
    for (size_t r = 0; r < ROWS; r++) {
        size_t row = first + r < inputs->n_rows ? first + r : inputs->n_rows - 1;
        x[r] = inputs->base + (inputs->rows ? (size_t)inputs->rows[row] : row) * dim;
    }
}

TARGET static void NAME(outputs)(const struct head *head, const struct inputs *inputs, float *out)
{
    const size_t n = inputs->n_rows, n_outputs = head->n_outputs, dim = head->dim;
    float found[ROWS * DEPTH];
    for (size_t row = 0; row < n; row += ROWS) {
        const float *x[ROWS];
        NAME(take_rows)(inputs, dim, row, x);
        for (size_t k = 0; k < n_outputs;) {
            size_t depth = k + DEPTH <= n_outputs ? DEPTH : 1;
            if (depth == DEPTH)
                NAME(dots)(DEPTH, dim, head->product + k * dim, x, found, DEPTH);
            else
                NAME(dots)(1, dim, head->product + k * dim, x, found, DEPTH);
            for (size_t r = 0; r < ROWS && row + r < n; r++)
                for (size_t i = 0; i < depth; i++)
                    out[(k + i) * n + row + r] = found[r * DEPTH + i] + head->product_bias[k + i];
            k += depth;
        }
    }
}

/* The gradient with respect to the product and its bias. errors: [n_outputs][n_rows]. */
TARGET static void NAME(product_gradient)(const struct head *head, const struct inputs *inputs,
                                          const float *errors, float *g, float *g_bias)
{
    const size_t n = inputs->n_rows, n_outputs = head->n_outputs, dim = head->dim;
    memset(g, 0, n_outputs * dim * sizeof *g);
    size_t row = 0;
    for (; row + ROWS <= n; row += ROWS) {
        const float *x[ROWS];
        NAME(take_rows)(inputs, dim, row, x);
        EACH_DEPTH(add, n_outputs, k, dim, g + k * dim, x, errors + k * n + row, 1, n);
    }
    for (; row < n; row++) {
        const float *x[ROWS];
        NAME(take_rows)(inputs, dim, row, x);
        for (size_t k = 0; k < n_outputs; k++) {
            const float only[ROWS] = {errors[k * n + row]};
            NAME(add)(1, dim, g + k * dim, x, only, 1, n);
        }
    }
    for (size_t k = 0; k < n_outputs; k++) {
        g_bias[k] = 0;
        for (row = 0; row < n; row++)
            g_bias[k] += errors[k * n + row];
    }
}

/* The gradient with respect to the inputs, out [n_rows][dim]. */
TARGET static void NAME(input_gradient)(const struct head *head, size_t n, const float *errors,
                                        float *out, float *scratch)
{
    const size_t dim = head->dim;
    size_t row = 0;
    for (; row + ROWS <= n; row += ROWS)
        NAME(combine)(head->n_outputs, dim, head->product, errors + row, 1, n, out + row * dim);
    for (; row < n; row++) { /* the other rows of scratch are not used */
        NAME(combine)(head->n_outputs, dim, head->product, errors + row, 0, n, scratch);
        memcpy(out + row * dim, scratch, dim * sizeof *out);
    }
}

#undef EACH_DEPTH
#undef ROWS
#undef lanes
#undef AT
#undef IN
