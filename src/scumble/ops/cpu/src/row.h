// What norms and softmax need of one row, in float32: its root mean square, its exponentials and their sum.
#pragma once
#include <cmath>

#include "simd.h"

template <class X>
static inline float inverse_rms(const X* x, int64_t d, float eps) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < d; i += 16) {
    __m512 v = load(x + i, tail_mask(d - i));
    sum = _mm512_fmadd_ps(v, v, sum);
  }
  return 1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / (float)d + eps);
}

// scores from … to - 1 -> e^(score - peak) at the same places of `weights`, which may be the scores; their sum, taken
// before `weights` are rounded.
template <class W>
static inline float exp_row(const float* scores, int64_t from, int64_t to, W* weights) {
  __m512 high = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
  for (int64_t i = from; i < to; i += 16) {
    __mmask16 m = tail_mask(to - i);
    high = _mm512_mask_max_ps(high, m, high, load(scores + i, m));
  }
  __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(high));
  for (int64_t i = from; i < to; i += 16) {
    __mmask16 m = tail_mask(to - i);
    __m512 w = _mm512_maskz_mov_ps(m, exp16(_mm512_sub_ps(load(scores + i, m), peak)));
    sum = _mm512_add_ps(sum, w);
    store(weights + i, m, w);
  }
  return _mm512_reduce_add_ps(sum);
}
