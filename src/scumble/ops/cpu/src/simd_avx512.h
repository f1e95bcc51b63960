// The types and functions of simd.h with AVX-512, BF16 and VNNI: an instruction each.
#pragma once

using Floats = __m512;
using Ints = __m512i;  // sixteen int32
using Doubles = __m512d;  // eight

constexpr int SUMS = 24;  // vectors of sums that stay in registers through a loop

static inline Floats floats(float x) { return _mm512_set1_ps(x); }
static inline Ints ints(int32_t x) { return _mm512_set1_epi32(x); }
static inline Doubles doubles(double x) { return _mm512_set1_pd(x); }

static inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
static inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
static inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
static inline Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
static inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b where either is NaN
static inline Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
static inline Floats abs(Floats x) { return _mm512_abs_ps(x); }
static inline Floats nearest(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
static inline Floats fmadd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }    // a · b + c
static inline Floats fmsub(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }    // a · b - c
static inline Floats fnmadd(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a · b
static inline Floats times_power(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }  // x · 2^n
static inline float reduce_add(Floats x) { return _mm512_reduce_add_ps(x); }
static inline float reduce_max(Floats x) { return _mm512_reduce_max_ps(x); }

static inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
static inline Ints sub(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
static inline Ints max(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
static inline Ints min(Ints a, Ints b) { return _mm512_min_epi32(a, b); }
static inline Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
static inline Ints either(Ints a, Ints b) { return _mm512_or_si512(a, b); }
static inline Ints shl(Ints x, int bits) { return _mm512_slli_epi32(x, bits); }
static inline Ints shr(Ints x, int bits) { return _mm512_srli_epi32(x, bits); }
static inline int32_t reduce_max(Ints x) { return _mm512_reduce_max_epi32(x); }

static inline Ints as_ints(Floats x) { return _mm512_castps_si512(x); }
static inline Floats as_floats(Ints x) { return _mm512_castsi512_ps(x); }
static inline Ints to_ints(Floats x) { return _mm512_cvtps_epi32(x); }  // to the nearest, even on a tie
static inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
static inline Doubles low_doubles(Floats x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
static inline Doubles high_doubles(Floats x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }
static inline Doubles add(Doubles a, Doubles b) { return _mm512_add_pd(a, b); }
static inline double reduce_add(Doubles x) { return _mm512_reduce_add_pd(x); }

// m: lanes that count. Comparisons give 0 in the others.
static inline Mask greater(Mask m, Floats a, Floats b) { return _mm512_mask_cmp_ps_mask(m, a, b, _CMP_GT_OQ); }
static inline Mask equal(Mask m, Floats a, Floats b) { return _mm512_mask_cmp_ps_mask(m, a, b, _CMP_EQ_OQ); }
static inline Mask differ(Mask m, Floats a, Floats b) { return _mm512_mask_cmp_ps_mask(m, a, b, _CMP_NEQ_UQ); }
static inline Floats keep(Mask m, Floats x) { return _mm512_maskz_mov_ps(m, x); }  // 0 in the others
static inline Floats select(Mask m, Floats there, Floats other) { return _mm512_mask_mov_ps(other, m, there); }
static inline Floats max_where(Mask m, Floats a, Floats b) { return _mm512_mask_max_ps(a, m, a, b); }  // else a
static inline Floats fmadd_where(Mask m, Floats a, Floats b, Floats c) { return _mm512_mask3_fmadd_ps(a, b, c, m); }  // else c

static inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
static inline Floats load(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
static inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
static inline void store(float* p, Mask m, Floats x) { _mm512_mask_storeu_ps(p, m, x); }
static inline Ints load(const int32_t* p) { return _mm512_loadu_si512(p); }
static inline Ints load(const int32_t* p, Mask m) { return _mm512_maskz_loadu_epi32(m, p); }
static inline void store(int32_t* p, Ints x) { _mm512_storeu_si512(p, x); }
static inline Floats gather(const float* p, Ints at) { return _mm512_i32gather_ps(at, p, 4); }
static inline Floats gather(const float* p, Mask m, Ints at) { return _mm512_mask_i32gather_ps(floats(0), m, at, p, 4); }
static inline void scatter(float* p, Mask m, Ints at, Floats x) { _mm512_mask_i32scatter_ps(p, m, at, x, 4); }

// bfloat16: load_words gives the 16 bits of each as they are; store rounds to nearest even.
static inline Floats rounded(Floats x) {  // through bfloat16 and back
  return as_floats(shl(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16));
}
static inline Ints load_words(const bf16* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
static inline Ints load_words(const bf16* p, Mask m) { return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)); }
static inline Floats load(const bf16* p) { return as_floats(shl(load_words(p), 16)); }
static inline Floats load(const bf16* p, Mask m) { return as_floats(shl(load_words(p, m), 16)); }
static inline void store(bf16* p, Floats x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x)); }
static inline void store(bf16* p, Mask m, Floats x) { _mm256_mask_storeu_epi16(p, m, (__m256i)_mm512_cvtneps_pbh(x)); }
static inline Floats half_floats(Ints x) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)); }  // float16 in low words

// Bytes: the lowest of each lane, and which of 16 bytes are not 0.
static inline Bytes low_bytes(Ints x) { return _mm512_cvtepi32_epi8(x); }
static inline void store(uint8_t* p, Mask m, Bytes x) { _mm_mask_storeu_epi8(p, m, x); }
static inline Mask nonzero(const uint8_t* p, Mask m) { return _mm_test_epi8_mask(_mm_maskz_loadu_epi8(m, p), _mm_set1_epi8(-1)); }
static inline Ints load_bytes(const uint8_t* p, int64_t count) {  // count < 64, zeros behind
  return _mm512_maskz_loadu_epi8(((__mmask64)1 << count) - 1, p);
}
static inline Ints looked_up(Bytes table, Ints at) {  // every byte 0 … 15 -> its entry
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), at);
}

// What the products take: a lane's two bfloat16, or its four bytes (u unsigned, s signed), times those of another.
static inline Floats dot2(Floats sum, Ints a, Ints b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
static inline Ints dot4(Ints sum, Ints u, Ints s) { return _mm512_dpbusd_epi32(sum, u, s); }
#ifdef __AVX512VNNI__
// The same as an instruction: from the intrinsic GCC makes copies of all sums at every step where they are used again
// behind the loop.
static inline void add_dot4(Ints& sum, Ints u, Ints s) { asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s)); }
static inline void kept(Ints& x) { asm("" : "+v"(x)); }  // in its register
#else  // where tests emulate the instructions
static inline void add_dot4(Ints& sum, Ints u, Ints s) { sum = dot4(sum, u, s); }
static inline void kept(Ints&) {}
#endif

// 16 vectors of 16 dwords, transposed in place.
static inline void transpose16(Ints r[16]) {
  Ints t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}
