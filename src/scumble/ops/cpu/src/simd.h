// Sixteen floats at a time, whatever the processor: the types Floats, Ints, Doubles and Mask and their functions are
// those of simd_avx512.h or of simd_avx2.h, which the compiler's flags choose. Kernels name no instruction of either.
//
// A Mask is 16 bits, a bit a lane. Masks of loads and stores are prefixes, as tail_mask makes them: memory behind the
// last lane is neither read nor written, and a load puts zeros there.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

using bf16 = uint16_t;
using Mask = uint16_t;
using Bytes = __m128i;  // sixteen bytes; both instruction sets have all that is done with them

constexpr Mask ALL = 0xFFFF;

static inline Mask tail_mask(int64_t left) { return left >= 16 ? ALL : (Mask)((1u << left) - 1); }

#ifdef __AVX512BF16__
#include "simd_avx512.h"
#else
#include "simd_avx2.h"
#endif

static inline float to_float(bf16 x) {
  uint32_t bits = (uint32_t)x << 16;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

// e^x for x ≤ 126, about 1 ulp; infinite above 88.7; 0 for x ≤ -104, -inf included; NaN for NaN.
static inline Floats exp16(Floats x) {
  x = max(floats(-104.0f), x);  // in this order NaN stays NaN
  Floats n = nearest(mul(x, floats(1.44269504f)));
  Floats r = fnmadd(n, floats(0.693359375f), x);
  r = fnmadd(n, floats(-2.12194440e-4f), r);
  Floats p = floats(1.9875691500e-4f);  // Cephes' expf
  p = fmadd(p, r, floats(1.3981999507e-3f));
  p = fmadd(p, r, floats(8.3334519073e-3f));
  p = fmadd(p, r, floats(4.1665795894e-2f));
  p = fmadd(p, r, floats(1.6666665459e-1f));
  p = fmadd(p, r, floats(5.0000001201e-1f));
  p = fmadd(p, mul(r, r), add(r, floats(1.0f)));
  return times_power(p, n);
}

// x/2 · (1 + tanh(√(2/π)(x + 0.044715x³))) = x / (1 + e^(-2u))
static inline Floats gelu16(Floats x) {
  Floats cube = mul(mul(x, x), x);
  Floats u = mul(fmadd(cube, floats(0.044715f), x), floats(-1.59576912f));
  u = min(u, floats(126.0f));  // its e^u is infinite, and x / infinity is 0
  return div(x, add(floats(1.0f), exp16(u)));
}
