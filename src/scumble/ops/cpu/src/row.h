// What norms and softmax need of one row, in float32: its root mean square, its exponentials and their sum.
#pragma once
#include <cmath>

#include "simd.h"

template <class X>
static inline float inverse_rms(const X* x, int64_t d, float eps) {
  Floats sum = floats(0);
  for (int64_t i = 0; i < d; i += 16) {
    Floats v = load(x + i, tail_mask(d - i));
    sum = fmadd(v, v, sum);
  }
  return 1.0f / std::sqrt(reduce_add(sum) / (float)d + eps);
}

// scores from … to - 1 -> e^(score - peak) at the same places of `weights`, which may be the scores; their sum, taken
// before `weights` are rounded.
template <class W>
static inline float exp_row(const float* scores, int64_t from, int64_t to, W* weights) {
  Floats high = floats(-INFINITY), sum = floats(0);
  for (int64_t i = from; i < to; i += 16) {
    Mask m = tail_mask(to - i);
    high = max_where(m, high, load(scores + i, m));
  }
  Floats peak = floats(reduce_max(high));
  for (int64_t i = from; i < to; i += 16) {
    Mask m = tail_mask(to - i);
    Floats w = keep(m, exp16(sub(load(scores + i, m), peak)));
    sum = add(sum, w);
    store(weights + i, m, w);
  }
  return reduce_add(sum);
}
