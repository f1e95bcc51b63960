// Symmetric int8 of one row, shifted by 128 to the unsigned numbers that the dot-product instruction wants.
#pragma once
#include <cmath>

#include "simd.h"

// x: float32 [k] -> q uint8 [k]; returns the scale: x ≈ scale · (q - 128). NaN or infinity in the row: the
// scale is NaN, so every product with the row is, and whoever checks finds it. k ≤ stride of q; the rest stays as it is.
template <class Load>
static inline float quantize_values(Load value, int64_t k, uint8_t* q) {
  Ints high = ints(0);  // as integers: magnitudes keep their order, NaN is above infinity
  for (int64_t i = 0; i < k; i += 16)
    high = max(high, as_ints(abs(value(i, tail_mask(k - i)))));
  int32_t bits = reduce_max(high);
  if (bits >= 0x7F800000) {
    std::memset(q, 128, k);
    return NAN;
  }
  float most;
  std::memcpy(&most, &bits, sizeof(most));
  float scale = most > 0 ? most / 127.0f : 1.0f;
  Floats inverse = floats(1.0f / scale);
  for (int64_t i = 0; i < k; i += 16) {
    Mask m = tail_mask(k - i);
    Ints n = to_ints(mul(value(i, m), inverse));
    n = add(min(max(n, ints(-127)), ints(127)), ints(128));
    store(q + i, m, low_bytes(n));
  }
  return scale;
}

static inline float quantize_row(const bf16* x, int64_t k, uint8_t* q) {
  return quantize_values([x](int64_t i, Mask m) { return load(x + i, m); }, k, q);
}

static inline float quantize_row(const float* x, int64_t k, uint8_t* q) {
  return quantize_values([x](int64_t i, Mask m) { return load(x + i, m); }, k, q);
}

// 16 sums of a product in int8 -> float: the shift of the activations taken out again, both scales put in.
static inline Floats dequantized(const int32_t* sums, const int32_t* shift, const float* scale, Floats row_scale) {
  Ints exact = sub(load(sums), load(shift));
  return mul(to_floats(exact), mul(load(scale), row_scale));
}
