// The four-bit products of four_bit.h with AVX2: a few rows straight from the weight, many from an unpacked panel.
//
// `maddubs` adds two products of a byte in 16 bits, which several of them fit: with values up to 15 eight (8 · 2 · 15 · 127 =
// 30,480), with E2M1's up to 24 five. So only every eighth (fourth) sum is widened to 32 bits, and no sum is ever clipped.
#pragma once

// 32 bytes of each of eight rows, `stride` apart -> eight vectors, a lane a row. Halves are put together when they are loaded:
// that costs less than to exchange them in registers.
static inline void eight_rows(const uint8_t* rows, int64_t stride, __m256i v[8]) {
  const auto two = [&](int row, int half) {
    const uint8_t* p = rows + row * stride + 16 * half;
    __m256i first = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)p));
    return _mm256_inserti128_si256(first, _mm_loadu_si128((const __m128i*)(p + 4 * stride)), 1);
  };
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
    const __m256i a = two(0, half), b = two(1, half), c = two(2, half), d = two(3, half);
    const __m256i ab = _mm256_unpacklo_epi32(a, b), AB = _mm256_unpackhi_epi32(a, b);
    const __m256i cd = _mm256_unpacklo_epi32(c, d), CD = _mm256_unpackhi_epi32(c, d);
    v[4 * half] = _mm256_unpacklo_epi64(ab, cd), v[4 * half + 1] = _mm256_unpackhi_epi64(ab, cd);
    v[4 * half + 2] = _mm256_unpacklo_epi64(AB, CD), v[4 * half + 3] = _mm256_unpackhi_epi64(AB, CD);
  }
}

// The same of `left` bytes of `count` rows: what is not there is 0.
static inline void some_rows(const uint8_t* rows, int64_t count, int64_t stride, int64_t left, __m256i v[8]) {
  if (left >= 32 && count >= 8) return eight_rows(rows, stride, v);
  uint8_t some[8 * 32] = {};
  for (int64_t i = 0; i < 8 && i < count; i++) std::memcpy(some + 32 * i, rows + i * stride, left < 32 ? left : 32);
  eight_rows(some, 32, v);
}

static inline void sixteen(const uint8_t* rows, int count, int64_t stride, int64_t at, int64_t bytes, Ints v[16]) {
  for (int i = 0; i < 16 && at < bytes; i += 8, at += 32) {
    __m256i low[8], high[8];
    some_rows(rows + at, count, stride, bytes - at, low);
    some_rows(rows + 8 * stride + at, count - 8, stride, bytes - at, high);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) v[i + j] = {low[j], high[j]};
  }
}

template <int TABLE>
static inline __m256i low_nibbles(__m256i v) {
  v = _mm256_and_si256(v, _mm256_set1_epi8(15));
  if (!TABLE) return v;
  const __m128i values = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), v);
}

// R rows times up to eight columns, straight from the weight: out [R][64], eight of every row written. W dwords of the
// weight at a time: their sums fit 16 bits, and they are of one group.
template <int R, bool ZEROS, int TABLE, int W>
static void few_by_8(const FourRows& a, const uint8_t* weight, int64_t count, const FourKind& kind, const float* scale,
                     const float* zero, float* out) {
  const int64_t bytes = a.k / 2, chunks = kind.group / 8 / W;  // of a group
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum[R];
  __m256 total[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) sum[r] = _mm256_setzero_si256(), total[r] = _mm256_setzero_ps();
  int64_t left = chunks, g = 0;
  for (int64_t at = 0; at < bytes; at += 32) {
    __m256i v[8];
    // Rows of columns lie one after another: what is needed 48 rows later is asked for line by line.
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) _mm_prefetch((const char*)(weight + 48 * bytes + 8 * at + LINE * i), _MM_HINT_T1);
    some_rows(weight + at, count, bytes, bytes - at, v);
    const int8_t* q = a.q + 2 * at;
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += W) {
      if (at + 4 * i >= bytes) break;
      __m256i part[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) part[r] = _mm256_setzero_si256();
#pragma GCC unroll 4
      for (int j = i; j < i + W; j++) {
        const __m256i low = low_nibbles<TABLE>(v[j]), high = low_nibbles<TABLE>(_mm256_srli_epi32(v[j], 4));
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
          const int32_t* x = (const int32_t*)(q + r * a.k + 8 * j);
          part[r] = _mm256_add_epi16(part[r], _mm256_maddubs_epi16(low, _mm256_set1_epi32(x[0])));
          part[r] = _mm256_add_epi16(part[r], _mm256_maddubs_epi16(high, _mm256_set1_epi32(x[1])));
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(part[r], ones));
      if (--left) continue;
      const __m256 s = _mm256_loadu_ps(scale + g * PANEL);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const int32_t own = a.sums[r * a.groups + g];
        if (!ZEROS) sum[r] = _mm256_add_epi32(sum[r], _mm256_set1_epi32(-kind.zero * own));
        total[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r]), s, total[r]);
        if (ZEROS) total[r] = _mm256_fnmadd_ps(_mm256_loadu_ps(zero + g * PANEL), _mm256_set1_ps((float)own), total[r]);
        sum[r] = _mm256_setzero_si256();
      }
      left = chunks, g++;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) _mm256_storeu_ps(out + r * PANEL, total[r]);
}

template <int R, bool ZEROS>
static void few_by_64(const FourRows& a, const FourBits& w, const FourKind& kind, int64_t column, int64_t width,
                      const float* scale, const float* zero, float* out) {
  const int64_t per_group = kind.group / 8;
  for (int64_t c = 0; c < width; c += 8) {
    const uint8_t* weight = w.packed + (column + c) * (a.k / 2);
    const auto run = [&](auto few) { few(a, weight, width - c, kind, scale + c, zero + c, out + c); };
    if (kind.table)
      per_group % 2 ? run(few_by_8<R, ZEROS, 1, 1>) : run(few_by_8<R, ZEROS, 1, 2>);
    else if (per_group % 4 == 0)
      run(few_by_8<R, ZEROS, 0, 4>);
    else
      per_group % 2 ? run(few_by_8<R, ZEROS, 0, 1>) : run(few_by_8<R, ZEROS, 0, 2>);
  }
}

constexpr int FEW = 4;  // rows; more are quicker from a panel

template <bool ZEROS>
static void few_rows(const FourRows& a, int64_t rows, const FourBits& w, const FourKind& kind, int64_t column,
                     int64_t width, const float* scale, const float* zero, float* out) {
  switch (rows) {
    case 1: return few_by_64<1, ZEROS>(a, w, kind, column, width, scale, zero, out);
    case 2: return few_by_64<2, ZEROS>(a, w, kind, column, width, scale, zero, out);
    case 3: return few_by_64<3, ZEROS>(a, w, kind, column, width, scale, zero, out);
    default: return few_by_64<4, ZEROS>(a, w, kind, column, width, scale, zero, out);
  }
}

// Bytes `at` … to - 1 of up to 16 rows of nibbles -> dwords of 16 columns of a panel, two an input dword.
template <int TABLE>
static inline void unpack_16(const uint8_t* rows, int count, int64_t bytes, int64_t at, int64_t to, int32_t* panel) {
  for (; at < to; at += 32, panel += 16 * PANEL)
    for (int c = 0; c < LANES; c += 8) {
      __m256i v[8];
      some_rows(rows + c * bytes + at, count - c, bytes, to - at, v);
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) {
        if (at + 4 * i >= to) break;
        int32_t* p = panel + 2 * i * PANEL + c;
        _mm256_storeu_si256((__m256i*)p, low_nibbles<TABLE>(v[i]));
        _mm256_storeu_si256((__m256i*)(p + PANEL), low_nibbles<TABLE>(_mm256_srli_epi32(v[i], 4)));
      }
    }
}

// R rows times `count` groups of C vectors of eight columns: added to out [R][64]. UNIT: dwords whose sums fit 16 bits.
template <int R, int C, bool ZEROS, int UNIT>
static inline void four_tile(const int8_t* q, int64_t k, const int32_t* sums, int64_t groups, const int32_t* panel,
                             int64_t steps, int64_t count, int zero_point, const float* scale, const float* zero,
                             float* out) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t g = 0; g < count; g++, scale += PANEL, zero += PANEL) {
    __m256i sum[R][C];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) sum[r][c] = _mm256_set1_epi32(ZEROS ? 0 : -zero_point * sums[r * groups + g]);
    for (int64_t done = 0; done < steps; done += UNIT) {
      const int64_t some = steps - done < UNIT ? steps - done : UNIT;
      __m256i part[R][C];  // sixteen words
#pragma GCC unroll 4
      for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) part[r][c] = _mm256_setzero_si256();
      for (int64_t i = 0; i < some; i++, panel += PANEL, q += 4) {
        __m256i x[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) x[r] = _mm256_set1_epi32(*(const int32_t*)(q + r * k));
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
          const __m256i b = _mm256_loadu_si256((const __m256i*)(panel + 8 * c));
#pragma GCC unroll 4
          for (int r = 0; r < R; r++) part[r][c] = _mm256_add_epi16(part[r][c], _mm256_maddubs_epi16(b, x[r]));
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) sum[r][c] = _mm256_add_epi32(sum[r][c], _mm256_madd_epi16(part[r][c], ones));
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) {
        float* to = out + r * PANEL + 8 * c;
        __m256 total = _mm256_loadu_ps(to);
        total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][c]), _mm256_loadu_ps(scale + 8 * c), total);
        if (ZEROS)
          total = _mm256_fnmadd_ps(_mm256_loadu_ps(zero + 8 * c), _mm256_set1_ps((float)sums[r * groups + g]), total);
        _mm256_storeu_ps(to, total);
      }
  }
}

// `rows` rows from their number `at` of K on, times `count` groups of the unpacked panel [steps a group][64]: added to out
// [rows][64].
template <bool ZEROS>
static void rows_by_panel(const FourRows& a, int64_t rows, int64_t group, int64_t at, const int32_t* panel, int64_t steps,
                          int64_t count, const FourKind& kind, const float* scale, const float* zero, float* out) {
  for (int64_t r = 0; r < rows; r += 4) {
    const int8_t* q = a.q + r * a.k + at;
    const int32_t* sums = a.sums + r * a.groups + group;
#define BY(R, C, UNIT)                                                                                              \
  for (int c = 0; c < PANEL; c += 8 * C)                                                                            \
  four_tile<R, C, ZEROS, UNIT>(q, a.k, sums, a.groups, panel + c, steps, count, kind.zero, scale + c, zero + c,     \
                               out + r * PANEL + c)
#define BY_UNIT(R, C)      \
  if (kind.table)          \
    BY(R, C, 4);           \
  else                     \
    BY(R, C, 8)
    if (rows - r >= 4) {
      BY_UNIT(4, 2);
    } else if (rows - r == 3) {
      BY_UNIT(3, 2);
    } else if (rows - r == 2) {
      BY_UNIT(2, 4);
    } else {
      BY_UNIT(1, 8);
    }
#undef BY_UNIT
#undef BY
  }
}
