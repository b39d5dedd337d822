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

/* ROWS of the gradient of W1: out = W2' G. */
TARGET INLINE void NAME(first_gradient)(size_t n_outputs, size_t dim, const float *restrict g,
                                        const float *restrict w2, float *restrict out)
{
    for (size_t j = 0; j < dim; j += WIDTH) {
        lanes sums[ROWS] = {0};
        for (size_t k = 0; k < n_outputs; k++) {
            lanes of_output = IN(g + k * dim + j);
            UNROLL for (int r = 0; r < ROWS; r++)
                sums[r] += of_output * w2[r * n_outputs + k];
        }
        UNROLL for (int r = 0; r < ROWS; r++)
            AT(out + r * dim + j) = sums[r];
    }
}

/* `depth` columns of the gradient of W2, for ROWS of its rows: dots = W1 G'. */
TARGET INLINE void NAME(last_gradient)(int depth, size_t dim, const float *restrict g,
                                       size_t n_outputs, const float *restrict w1,
                                       float *restrict dots)
{
    lanes sums[ROWS][DEPTH] = {0};
    for (size_t j = 0; j < dim; j += WIDTH) {
        lanes of_outputs[DEPTH];
        UNROLL for (int k = 0; k < depth; k++)
            of_outputs[k] = IN(g + k * dim + j);
        UNROLL for (int r = 0; r < ROWS; r++) {
            lanes weights = IN(w1 + r * dim + j);
            UNROLL for (int k = 0; k < depth; k++)
                sums[r][k] += of_outputs[k] * weights;
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int k = 0; k < depth; k++)
            dots[r * n_outputs + k] = NAME(sum_of)(&sums[r][k]);
}

/* `depth` rows of the product of ROWS of both layers: p += W2 W1. */
TARGET INLINE void NAME(multiply)(int depth, size_t dim, float *restrict p, size_t n_outputs,
                                  const float *restrict w1, const float *restrict w2)
{
    for (size_t j = 0; j < dim; j += WIDTH) {
        lanes weights[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++)
            weights[r] = IN(w1 + r * dim + j);
        UNROLL for (int k = 0; k < depth; k++) {
            lanes total = IN(p + k * dim + j);
            UNROLL for (int r = 0; r < ROWS; r++)
                total += weights[r] * w2[r * n_outputs + k];
            AT(p + k * dim + j) = total;
        }
    }
}

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
        size_t k = 0;
        NAME(first_gradient)(n_outputs, dim, g, w2, rows);
        for (; k + DEPTH <= n_outputs; k += DEPTH)
            NAME(last_gradient)(DEPTH, dim, g + k * dim, n_outputs, w1, dots + k);
        for (; k < n_outputs; k++)
            NAME(last_gradient)(1, dim, g + k * dim, n_outputs, w1, dots + k);
        for (size_t r = 0; r < ROWS; r++)
            for (k = 0; k < n_outputs; k++) {
                b1_gradient[r] += w2[r * n_outputs + k] * g_bias[k];
                dots[r * n_outputs + k] += g_bias[k] * b1[r];
            }
        NAME(update)(first, i * dim, ROWS * dim, rows, by);
        NAME(update)(first_bias, i, ROWS, b1_gradient, by);
        NAME(update)(last, i * n_outputs, ROWS * n_outputs, dots, by);
        for (k = 0; k + DEPTH <= n_outputs; k += DEPTH)
            NAME(multiply)(DEPTH, dim, p + k * dim, n_outputs, w1, w2 + k);
        for (; k < n_outputs; k++)
            NAME(multiply)(1, dim, p + k * dim, n_outputs, w1, w2 + k);
        for (k = 0; k < n_outputs; k++)
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

#undef ROWS
#undef lanes
#undef AT
#undef IN
