// Four-bit weights back to bfloat16: one bf16 scale for 32 numbers, byte i of 16 holds numbers i (low) and i + 16 (high).
#include "simd.h"

// packed [rows, groups, 16], scale [rows, groups] -> out [rows, k], groups = ceil(k / 32): bfloat16(scale · (nibble - 8))
extern "C" void scumble_unpack_int4(const uint8_t* packed, const bf16* scale, bf16* out, int64_t rows, int64_t k,
                                    int threads) {
  int64_t groups = (k + 31) / 32;
  const __m512 steps = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m128i low = _mm_set1_epi8(15);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t g = 0; g < groups; g++) {
      int64_t at = row * groups + g;
      uint32_t bits = (uint32_t)scale[at] << 16;
      float s;
      std::memcpy(&s, &bits, 4);
      __m512i table = _mm512_castsi256_si512(narrow(_mm512_mul_ps(steps, _mm512_set1_ps(s))));  // the 16 possible numbers
      __m128i bytes = _mm_loadu_si128((const __m128i*)(packed + 16 * at));
      __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), low);
      __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_and_si128(bytes, low)), high, 1);
      __m512i numbers = _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(both), table);
      int64_t left = k - 32 * g;
      __mmask32 m = left >= 32 ? 0xFFFFFFFFu : (1u << left) - 1;
      _mm512_mask_storeu_epi16(out + row * k + 32 * g, m, numbers);
    }
  }
}
