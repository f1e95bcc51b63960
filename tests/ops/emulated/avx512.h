// AVX-512 on a processor without it: SIMDE's emulation, and by plain loops what that lacks of src/simd_avx512.h.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#define __AVX512BF16__ 1  // which src/simd.h asks for

namespace emulated {
template <class To, class From>
To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
template <class N, int COUNT>
struct Lanes {
  N at[COUNT];
};
// COUNT lanes of `Out`, each made of lane i of x.
template <class Vector, class Out, class In, int COUNT, class From, class Each>
Vector each(const From& x, Each make) {
  auto in = as<Lanes<In, COUNT>>(x);
  Lanes<Out, COUNT> out;
  for (int i = 0; i < COUNT; i++) out.at[i] = make(in.at[i]);
  return as<Vector>(out);
}
template <class Vector, class N, int COUNT>
Vector load(uint64_t m, const void* p) {
  Lanes<N, COUNT> out = {};
  for (int i = 0; i < COUNT; i++)
    if (m >> i & 1) std::memcpy(&out.at[i], (const N*)p + i, sizeof(N));
  return as<Vector>(out);
}
template <class N, int COUNT, class Vector>
void store(void* p, uint64_t m, const Vector& x) {
  auto in = as<Lanes<N, COUNT>>(x);
  for (int i = 0; i < COUNT; i++)
    if (m >> i & 1) std::memcpy((N*)p + i, &in.at[i], sizeof(N));
}
template <class N, int COUNT, class Vector, class Both>
N folded(const Vector& x, Both both) {
  auto v = as<Lanes<N, COUNT>>(x);
  for (int half = COUNT / 2; half; half /= 2)
    for (int i = 0; i < half; i++) v.at[i] = both(v.at[i + half], v.at[i]);
  return v.at[0];
}
inline uint16_t bf16_of(float x) {
  uint32_t bits = as<uint32_t>(x);
  if (x != x) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline float larger(float a, float b) { return a > b ? a : b; }
inline int32_t larger_int(int32_t a, int32_t b) { return a > b ? a : b; }
template <class N>
N sum(N a, N b) {
  return a + b;
}
inline __m512 gathered(__m512 other, uint16_t m, const __m512i& at, const float* p) {
  auto places = as<Lanes<int32_t, 16>>(at);
  auto out = as<Lanes<float, 16>>(other);
  for (int i = 0; i < 16; i++)
    if (m >> i & 1) out.at[i] = p[places.at[i]];
  return as<__m512>(out);
}
inline void scattered(float* p, uint16_t m, const __m512i& at, const __m512& x) {
  auto places = as<Lanes<int32_t, 16>>(at);
  auto in = as<Lanes<float, 16>>(x);
  for (int i = 0; i < 16; i++)
    if (m >> i & 1) p[places.at[i]] = in.at[i];
}
template <int HOW>
uint16_t compared(uint16_t m, const __m512& a, const __m512& b) {
  auto x = as<Lanes<float, 16>>(a), y = as<Lanes<float, 16>>(b);
  uint16_t out = 0;
  for (int i = 0; i < 16; i++) {
    bool yes = HOW == _CMP_GT_OQ ? x.at[i] > y.at[i] : HOW == _CMP_EQ_OQ ? x.at[i] == y.at[i] : x.at[i] != y.at[i];
    out |= yes << i;
  }
  return m & out;
}
}  // namespace emulated

// Without optimization the compiler's own are macros.
#undef _mm512_extractf32x8_ps
#undef _mm512_i32gather_ps
#undef _mm512_mask_i32gather_ps
#undef _mm512_mask_i32scatter_ps
#undef _mm512_mask_cmp_ps_mask

#define _mm512_reduce_add_ps(x) (emulated::folded<float, 16>(x, emulated::sum<float>))
#define _mm512_reduce_add_pd(x) (emulated::folded<double, 8>(x, emulated::sum<double>))
#define _mm512_reduce_max_ps(x) (emulated::folded<float, 16>(x, emulated::larger))
#define _mm512_reduce_max_epi32(x) (emulated::folded<int32_t, 16>(x, emulated::larger_int))
#define _mm512_cvtepi32_ps(x) (emulated::each<__m512, float, int32_t, 16>(x, [](int32_t v) { return (float)v; }))
#define _mm512_cvtps_epi32(x) (emulated::each<__m512i, int32_t, float, 16>(x, [](float v) { return _mm_cvtss_si32(_mm_set_ss(v)); }))
#define _mm512_cvtepi32_epi8(x) (emulated::each<__m128i, uint8_t, int32_t, 16>(x, [](int32_t v) { return (uint8_t)v; }))
#define _mm512_cvtepi32_epi16(x) (emulated::each<__m256i, uint16_t, int32_t, 16>(x, [](int32_t v) { return (uint16_t)v; }))
#define _mm512_cvtepu16_epi32(x) (emulated::each<__m512i, int32_t, uint16_t, 16>(x, [](uint16_t v) { return (int32_t)v; }))
#define _mm512_cvtps_pd(x) (emulated::each<__m512d, double, float, 8>(x, [](float v) { return (double)v; }))
#define _mm512_cvtneps_pbh(x) (emulated::each<__m256i, uint16_t, float, 16>(x, emulated::bf16_of))
#define _mm512_cvtph_ps(x) (emulated::each<__m512, float, uint16_t, 16>(x, [](uint16_t v) { return _cvtsh_ss(v); }))
#define _mm512_mask3_fmadd_ps(a, b, c, m) (_mm512_mask_mov_ps(c, m, _mm512_fmadd_ps(a, b, c)))
#define _mm512_maskz_loadu_ps(m, p) (emulated::load<__m512, float, 16>(m, p))
#define _mm512_maskz_loadu_epi32(m, p) (emulated::load<__m512i, int32_t, 16>(m, p))
#define _mm512_maskz_loadu_epi8(m, p) (emulated::load<__m512i, uint8_t, 64>(m, p))
#define _mm256_maskz_loadu_epi16(m, p) (emulated::load<__m256i, uint16_t, 16>(m, p))
#define _mm_maskz_loadu_epi8(m, p) (emulated::load<__m128i, uint8_t, 16>(m, p))
#define _mm512_mask_storeu_ps(p, m, x) (emulated::store<float, 16>(p, m, x))
#define _mm256_mask_storeu_epi16(p, m, x) (emulated::store<uint16_t, 16>(p, m, x))
#define _mm_mask_storeu_epi8(p, m, x) (emulated::store<uint8_t, 16>(p, m, x))
#define _mm_test_epi8_mask(a, b) ((uint16_t)~_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_and_si128(a, b), _mm_setzero_si128())))
#define _mm512_extractf32x8_ps(x, half) (emulated::as<emulated::Lanes<__m256, 2>>(x).at[half])
#define _mm512_i32gather_ps(at, p, size) (emulated::gathered(_mm512_setzero_ps(), 0xFFFF, at, p))
#define _mm512_mask_i32gather_ps(other, m, at, p, size) (emulated::gathered(other, m, at, p))
#define _mm512_mask_i32scatter_ps(p, m, at, x, size) (emulated::scattered(p, m, at, x))
#define _mm512_mask_cmp_ps_mask(m, a, b, how) (emulated::compared<how>(m, a, b))
