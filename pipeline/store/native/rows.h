/* Rows to shuffled places; see rows.c. */
#ifndef STRATA_ROWS_H
#define STRATA_ROWS_H

#include <stddef.h>
#include <stdint.h>

int strata_rows_interface(void);
void strata_place_rows(const char *in, const uintptr_t *to, size_t n, size_t row_bytes,
                       size_t shift, uintptr_t alignment);

#endif
