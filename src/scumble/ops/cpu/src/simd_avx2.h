// The types and functions of simd.h with AVX2, FMA and F16C: two halves of eight lanes each. What AVX-512 has an
// instruction for and AVX2 has not is written out here: masks, rounding to bfloat16, powers of two.
#pragma once

struct Floats {
  __m256 low, high;
};
struct Ints {  // sixteen int32
  __m256i low, high;
};
struct Doubles {  // eight
  __m256d low, high;
};

constexpr int SUMS = 6;  // vectors of sums that stay in registers through a loop

#define LANEWISE static inline __attribute__((always_inline))

LANEWISE Floats floats(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
LANEWISE Ints ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
LANEWISE Doubles doubles(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }

LANEWISE Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
LANEWISE Floats sub(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
LANEWISE Floats mul(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
LANEWISE Floats div(Floats a, Floats b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
LANEWISE Floats max(Floats a, Floats b) {  // b where either is NaN
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
LANEWISE Floats min(Floats a, Floats b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
LANEWISE Floats abs(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
LANEWISE Floats nearest(Floats x) {
  constexpr int HOW = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.low, HOW), _mm256_round_ps(x.high, HOW)};
}
LANEWISE Floats fmadd(Floats a, Floats b, Floats c) {  // a · b + c
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
LANEWISE Floats fmsub(Floats a, Floats b, Floats c) {  // a · b - c
  return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
LANEWISE Floats fnmadd(Floats a, Floats b, Floats c) {  // c - a · b
  return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
// x · 2^n, whole n from -252 to 254: in two steps, so that every factor is a normal number and only the second rounds.
LANEWISE __m256 times_power(__m256 x, __m256 n) {
  __m256i whole = _mm256_cvtps_epi32(n), first = _mm256_srai_epi32(whole, 1), one = _mm256_set1_epi32(127);
  __m256i second = _mm256_sub_epi32(whole, first);
  x = _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(first, one), 23)));
  return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(second, one), 23)));
}
LANEWISE Floats times_power(Floats x, Floats n) { return {times_power(x.low, n.low), times_power(x.high, n.high)}; }
// Halves first, as AVX-512 does it: the same order of the sum.
LANEWISE float reduce_add(Floats x) {
  __m256 eight = _mm256_add_ps(x.high, x.low);
  __m128 four = _mm_add_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
LANEWISE float reduce_max(Floats x) {
  __m256 eight = _mm256_max_ps(x.high, x.low);
  __m128 four = _mm_max_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
LANEWISE float first(Floats x) { return _mm256_cvtss_f32(x.low); }

LANEWISE Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
LANEWISE Ints sub(Ints a, Ints b) { return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)}; }
LANEWISE Ints max(Ints a, Ints b) { return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }
LANEWISE Ints min(Ints a, Ints b) { return {_mm256_min_epi32(a.low, b.low), _mm256_min_epi32(a.high, b.high)}; }
LANEWISE Ints both(Ints a, Ints b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
LANEWISE Ints either(Ints a, Ints b) { return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }
LANEWISE Ints shl(Ints x, int bits) { return {_mm256_slli_epi32(x.low, bits), _mm256_slli_epi32(x.high, bits)}; }
LANEWISE Ints shr(Ints x, int bits) { return {_mm256_srli_epi32(x.low, bits), _mm256_srli_epi32(x.high, bits)}; }
LANEWISE int32_t reduce_max(Ints x) {
  __m256i eight = _mm256_max_epi32(x.low, x.high);
  __m128i four = _mm_max_epi32(_mm256_extracti128_si256(eight, 1), _mm256_castsi256_si128(eight));
  __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}

LANEWISE Ints as_ints(Floats x) { return {_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)}; }
LANEWISE Floats as_floats(Ints x) { return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }
LANEWISE Ints to_ints(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }  // nearest, even on a tie
LANEWISE Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
LANEWISE Doubles doubles_of(__m256 x) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
}
LANEWISE Doubles low_doubles(Floats x) { return doubles_of(x.low); }
LANEWISE Doubles high_doubles(Floats x) { return doubles_of(x.high); }
LANEWISE Doubles add(Doubles a, Doubles b) { return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)}; }
LANEWISE double reduce_add(Doubles x) {
  __m256d four = _mm256_add_pd(x.high, x.low);
  __m128d two = _mm_add_pd(_mm256_extractf128_pd(four, 1), _mm256_castpd256_pd128(four));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

// Bits of a mask as lanes of ones and zeros. A whole mask, much the most frequent, is asked for first: the branch costs less.
LANEWISE Ints lanes(Mask m) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), all = _mm256_set1_epi32(m);
  const __m256i high = _mm256_slli_epi32(bits, 8);
  return {_mm256_cmpeq_epi32(_mm256_and_si256(all, bits), bits), _mm256_cmpeq_epi32(_mm256_and_si256(all, high), high)};
}
template <int HOW>
LANEWISE Mask compared(Floats a, Floats b) {
  int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, HOW));
  return (Mask)(low | _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, HOW)) << 8);
}
// m: lanes that count. Comparisons give 0 in the others.
LANEWISE Mask greater(Mask m, Floats a, Floats b) { return m & compared<_CMP_GT_OQ>(a, b); }
LANEWISE Mask equal(Mask m, Floats a, Floats b) { return m & compared<_CMP_EQ_OQ>(a, b); }
LANEWISE Mask differ(Mask m, Floats a, Floats b) { return m & compared<_CMP_NEQ_UQ>(a, b); }
LANEWISE Floats select(Mask m, Floats there, Floats other) {
  if (m == ALL) return there;
  Floats l = as_floats(lanes(m));
  return {_mm256_blendv_ps(other.low, there.low, l.low), _mm256_blendv_ps(other.high, there.high, l.high)};
}
LANEWISE Floats keep(Mask m, Floats x) { return m == ALL ? x : as_floats(both(as_ints(x), lanes(m))); }  // 0 in the others
LANEWISE Floats max_where(Mask m, Floats a, Floats b) { return select(m, max(a, b), a); }
LANEWISE Floats fmadd_where(Mask m, Floats a, Floats b, Floats c) { return select(m, fmadd(a, b, c), c); }

LANEWISE Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
LANEWISE Floats load(const float* p, Mask m) {
  if (m == ALL) return load(p);
  Ints l = lanes(m);
  return {_mm256_maskload_ps(p, l.low), _mm256_maskload_ps(p + 8, l.high)};
}
LANEWISE void store(float* p, Floats x) { _mm256_storeu_ps(p, x.low), _mm256_storeu_ps(p + 8, x.high); }
LANEWISE void store(float* p, Mask m, Floats x) {
  if (m == ALL) return store(p, x);
  Ints l = lanes(m);
  _mm256_maskstore_ps(p, l.low, x.low), _mm256_maskstore_ps(p + 8, l.high, x.high);
}
LANEWISE Ints load(const int32_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
LANEWISE Ints load(const int32_t* p, Mask m) {
  if (m == ALL) return load(p);
  Ints l = lanes(m);
  return {_mm256_maskload_epi32(p, l.low), _mm256_maskload_epi32(p + 8, l.high)};
}
LANEWISE void store(int32_t* p, Ints x) {
  _mm256_storeu_si256((__m256i*)p, x.low), _mm256_storeu_si256((__m256i*)(p + 8), x.high);
}
LANEWISE Floats gather(const float* p, Ints at) {
  return {_mm256_i32gather_ps(p, at.low, 4), _mm256_i32gather_ps(p, at.high, 4)};
}
LANEWISE Floats gather(const float* p, Mask m, Ints at) {
  if (m == ALL) return gather(p, at);
  const __m256 zero = _mm256_setzero_ps();
  Floats l = as_floats(lanes(m));
  return {_mm256_mask_i32gather_ps(zero, p, at.low, l.low, 4), _mm256_mask_i32gather_ps(zero, p, at.high, l.high, 4)};
}
LANEWISE void scatter(float* p, Mask m, Ints at, Floats x) {
  int32_t places[16];
  float values[16];
  store(places, at), store(values, x);
  for (unsigned left = m; left; left &= left - 1) p[places[__builtin_ctz(left)]] = values[__builtin_ctz(left)];
}

// bfloat16: load_words gives the 16 bits of each as they are; store rounds to nearest even. NaN stays NaN: the sum that
// rounds could carry one into infinity or zero, so it is made quiet instead.
LANEWISE __m256i to_bf16(__m256 x) {  // in the high halves; the low ones hold what is left
  __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7FFF));
  __m256 quiet = _mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_set1_epi32(0x400000)));
  return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(sum), quiet, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
LANEWISE Floats rounded(Floats x) {  // through bfloat16 and back
  const __m256i upper = _mm256_set1_epi32(0xFFFF0000);
  return {_mm256_castsi256_ps(_mm256_and_si256(to_bf16(x.low), upper)),
          _mm256_castsi256_ps(_mm256_and_si256(to_bf16(x.high), upper))};
}
LANEWISE __m256i low_words(Ints x) {  // of each lane, in order; the high halves of the lanes must be 0
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(x.low, x.high), 0xD8);
}
LANEWISE __m256i narrow(Floats x) {
  return low_words({_mm256_srli_epi32(to_bf16(x.low), 16), _mm256_srli_epi32(to_bf16(x.high), 16)});
}
LANEWISE Ints words(__m256i x) {
  return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1))};
}
LANEWISE Ints load_words(const bf16* p) {
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
LANEWISE Ints load_words(const bf16* p, Mask m) {  // whole pairs as dwords, then an odd last one
  if (m == ALL) return load_words(p);
  int count = __builtin_popcount(m);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  Ints x = words(_mm256_maskload_epi32((const int*)p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count / 2), lane)));
  if (count % 2) {
    __m256i last = _mm256_set1_epi32(p[count - 1]), at = _mm256_set1_epi32(count - 1);
    x.low = _mm256_or_si256(x.low, _mm256_and_si256(last, _mm256_cmpeq_epi32(at, lane)));
    at = _mm256_sub_epi32(at, _mm256_set1_epi32(8));
    x.high = _mm256_or_si256(x.high, _mm256_and_si256(last, _mm256_cmpeq_epi32(at, lane)));
  }
  return x;
}
LANEWISE Floats load(const bf16* p) { return as_floats(shl(load_words(p), 16)); }
LANEWISE Floats load(const bf16* p, Mask m) { return as_floats(shl(load_words(p, m), 16)); }
LANEWISE void store(bf16* p, Floats x) { _mm256_storeu_si256((__m256i*)p, narrow(x)); }
LANEWISE void store(bf16* p, Mask m, Floats x) {
  if (m == ALL) return store(p, x);
  bf16 all[16];
  store(all, x);
  std::memcpy(p, all, __builtin_popcount(m) * sizeof(bf16));
}
LANEWISE Floats half_floats(Ints x) {  // float16 in low words
  const Ints word = ints(0xFFFF);
  __m256i all = low_words(both(x, word));
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(all)), _mm256_cvtph_ps(_mm256_extracti128_si256(all, 1))};
}

// Bytes: the lowest of each lane, and which of 16 bytes are not 0.
LANEWISE Bytes low_bytes(Ints x) {
  const Ints byte = ints(255);
  __m256i all = low_words(both(x, byte));
  return _mm_packus_epi16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
LANEWISE void store(uint8_t* p, Mask m, Bytes x) {
  if (m == ALL) return _mm_storeu_si128((__m128i*)p, x);
  uint8_t all[16];
  _mm_storeu_si128((__m128i*)all, x);
  std::memcpy(p, all, __builtin_popcount(m));
}
LANEWISE Mask nonzero(const uint8_t* p, Mask m) {
  uint8_t all[16] = {};
  if (m != ALL) std::memcpy(all, p, __builtin_popcount(m));
  __m128i x = _mm_loadu_si128((const __m128i*)(m == ALL ? p : all));
  return m & ~_mm_movemask_epi8(_mm_cmpeq_epi8(x, _mm_setzero_si128()));
}

LANEWISE Ints load_bytes(const uint8_t* p, int64_t count) {  // count < 64, zeros behind
  int32_t all[16] = {};
  std::memcpy(all, p, count);
  return load(all);
}
LANEWISE Ints looked_up(Bytes table, Ints at) {  // every byte 0 … 15 -> its entry
  const __m256i both_halves = _mm256_broadcastsi128_si256(table);
  return {_mm256_shuffle_epi8(both_halves, at.low), _mm256_shuffle_epi8(both_halves, at.high)};
}

// What the products take: a lane's two bfloat16, or its four bytes (u unsigned, s signed), times those of another.
LANEWISE Floats dot2(Floats sum, Ints a, Ints b) {
  const Ints upper = ints(0xFFFF0000);
  sum = fmadd(as_floats(both(a, upper)), as_floats(both(b, upper)), sum);
  return fmadd(as_floats(shl(a, 16)), as_floats(shl(b, 16)), sum);
}
LANEWISE __m256i dot4(__m256i sum, __m256i u, __m256i s) {  // exact: products of pairs of 16 bits
  const __m256i even = _mm256_set1_epi16(0xFF);
  __m256i low = _mm256_madd_epi16(_mm256_and_si256(u, even), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  __m256i high = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(low, high));
}
LANEWISE Ints dot4(Ints sum, Ints u, Ints s) { return {dot4(sum.low, u.low, s.low), dot4(sum.high, u.high, s.high)}; }
LANEWISE void add_dot4(Ints& sum, Ints u, Ints s) { sum = dot4(sum, u, s); }
LANEWISE void kept(Ints&) {}

// 16 vectors of 16 dwords, transposed in place: four blocks of 8 by 8, of which two change places.
LANEWISE void transpose8(__m256i r[8]) {
  __m256i t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    r[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) t[i] = r[i], t[4 + i] = r[4 + i];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[i] = _mm256_permute2x128_si256(t[i], t[4 + i], 0x20);
    r[4 + i] = _mm256_permute2x128_si256(t[i], t[4 + i], 0x31);
  }
}
static inline void transpose16(Ints r[16]) {
  __m256i a[8], b[8];
  for (int i = 0; i < 8; i++) a[i] = r[i].low;
  transpose8(a);
  for (int i = 0; i < 8; i++) b[i] = r[8 + i].low;
  transpose8(b);
  for (int i = 0; i < 8; i++) r[i].low = a[i], a[i] = r[i].high, r[i].high = b[i];
  transpose8(a);
  for (int i = 0; i < 8; i++) b[i] = r[8 + i].high, r[8 + i].low = a[i];
  transpose8(b);
  for (int i = 0; i < 8; i++) r[8 + i].high = b[i];
}

#undef LANEWISE
