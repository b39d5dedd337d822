/* Decoding of int8 features; see int8.c. */
#ifndef STRATA_INT8_H
#define STRATA_INT8_H

#include <stddef.h>
#include <stdint.h>

int strata_int8_interface(void);
int strata_int8_level(void);
void strata_int8_decode(int level, const int8_t *q, size_t n_frames, size_t dim,
                        const float *scales, uint16_t *half, float *single, int streams);

#endif
