// Symmetric int8 of one row, shifted by 128 to the unsigned numbers that the dot-product instruction wants.
#pragma once
#include <cmath>

#include "simd.h"

// x: float32 [k] -> q uint8 [k]; returns the scale: x ≈ scale · (q - 128). NaN or infinity in the row: the
// scale is NaN, so every product with the row is, and whoever checks finds it. k ≤ stride of q; the rest stays as it is.
template <class Load>
static inline float quantize_values(Load value, int64_t k, uint8_t* q) {
  __m512i high = _mm512_setzero_si512();  // as integers: magnitudes keep their order, NaN is above infinity
  for (int64_t i = 0; i < k; i += 16)
    high = _mm512_max_epi32(high, _mm512_castps_si512(_mm512_abs_ps(value(i, tail_mask(k - i)))));
  int32_t bits = _mm512_reduce_max_epi32(high);
  if (bits >= 0x7F800000) {
    std::memset(q, 128, k);
    return NAN;
  }
  float most;
  std::memcpy(&most, &bits, sizeof(most));
  float scale = most > 0 ? most / 127.0f : 1.0f;
  __m512 inverse = _mm512_set1_ps(1.0f / scale);
  for (int64_t i = 0; i < k; i += 16) {
    __mmask16 m = tail_mask(k - i);
    __m512i n = _mm512_cvtps_epi32(_mm512_mul_ps(value(i, m), inverse));
    n = _mm512_add_epi32(_mm512_min_epi32(_mm512_max_epi32(n, _mm512_set1_epi32(-127)), _mm512_set1_epi32(127)),
                         _mm512_set1_epi32(128));
    _mm_mask_storeu_epi8(q + i, m, _mm512_cvtepi32_epi8(n));
  }
  return scale;
}

static inline float quantize_row(const bf16* x, int64_t k, uint8_t* q) {
  return quantize_values([x](int64_t i, __mmask16 m) { return load(x + i, m); }, k, q);
}

static inline float quantize_row(const float* x, int64_t k, uint8_t* q) {
  return quantize_values([x](int64_t i, __mmask16 m) { return _mm512_maskz_loadu_ps(m, x + i); }, k, q);
}

// 16 sums of a product in int8 -> float: the shift of the activations taken out again, both scales put in.
static inline __m512 dequantized(const int32_t* sums, const int32_t* shift, const float* scale, __m512 row_scale) {
  __m512i exact = _mm512_sub_epi32(_mm512_loadu_si512(sums), _mm512_loadu_si512(shift));
  return _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_mul_ps(_mm512_loadu_ps(scale), row_scale));
}
