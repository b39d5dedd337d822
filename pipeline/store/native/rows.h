/* Rows to shuffled places; see rows.c. */
#ifndef STRATA_ROWS_H
#define STRATA_ROWS_H

#include <stddef.h>
#include <stdint.h>

void strata_scatter_rows(const char *in, int64_t first, const int64_t *sources,
                         const int64_t *places, size_t n, size_t row_bytes, char *out,
                         size_t step_bytes);

#endif
