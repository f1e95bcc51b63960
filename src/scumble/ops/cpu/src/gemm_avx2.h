// rows_times_panel and rows_times_plain of gemm.h with AVX2: the same arguments, the same layout.
//
// A dword's two halves (two bfloat16; or two pairs of bytes, as words) are widened and multiplied one after the other: a
// multiply-add of floats, or of words, each. Widening a panel's vector is shared by all rows; the rows themselves are
// widened once for a run of K, so that a step loads them by broadcasting, which costs no arithmetic.
// Sixteen registers: up to twelve sums, two vectors of the panel, one number of a row. So a panel is worked through in
// tiles of C vectors of eight columns. Every sum is taken in one order for any number of rows.
#pragma once

#define INLINE static inline __attribute__((always_inline))

constexpr int RUN = 256;  // dwords at a time: six rows of them, widened, leave more than half of the first-level cache

template <class T>
struct Halves;

template <>
struct Halves<Bf16> {  // the upper number first, as dot2 of simd_avx2.h
  INLINE __m256i first(__m256i b) { return _mm256_and_si256(b, _mm256_set1_epi32(0xFFFF0000)); }
  INLINE __m256i second(__m256i b) { return _mm256_slli_epi32(b, 16); }
  INLINE __m128i first_of_row(__m128i x) { return _mm_and_si128(x, _mm_set1_epi32(0xFFFF0000)); }
  INLINE __m128i second_of_row(__m128i x) { return _mm_slli_epi32(x, 16); }
  INLINE void add(__m256i& sum, __m256i x, __m256i b) { asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(x), "x"(b)); }
  // A step of 4, 5 or 6 rows by 16 columns. Written out, because twelve sums leave four registers: from intrinsics, GCC
  // moves loads about until some of the sums lie in memory. Rows are 2 · RUN · 4 = 2048 bytes apart.
#define ROW(AT, R)                                                                                        \
  "vbroadcastss " #AT "(%[x]), %%ymm15\n\tvfmadd231ps %%ymm13, %%ymm15, %[a" #R "]\n\t"                   \
  "vfmadd231ps %%ymm14, %%ymm15, %[b" #R "]\n\t"
#define LOAD "vmovdqu (%[p]), %%ymm13\n\tvmovdqu 32(%[p]), %%ymm14\n\t"
#define UP "vpslld $16, %%ymm13, %%ymm13\n\tvpslld $16, %%ymm14, %%ymm14\n\t"
#define DOWN "vpsrld $16, %%ymm13, %%ymm13\n\tvpsrld $16, %%ymm14, %%ymm14\n\t"
#define SUM(R) [a##R] "+x"(sum[R][0]), [b##R] "+x"(sum[R][1])
#define STEP(FIRST, SECOND, ...)                                                                          \
  asm(LOAD DOWN UP FIRST LOAD UP SECOND                                                                   \
      : __VA_ARGS__                                                                                       \
      : [x] "r"(x), [p] "r"(panel), "m"(*(const int32_t(*)[2 * RUN * (R - 1) + 2])x),                     \
        "m"(*(const int32_t(*)[16])panel)                                                                 \
      : "xmm13", "xmm14", "xmm15")
#define FOUR(BY) ROW(BY, 0) ROW(2048 + BY, 1) ROW(4096 + BY, 2) ROW(6144 + BY, 3)
  template <int R>
  INLINE void step(__m256i sum[R][2], const int32_t* x, const int32_t* panel) {
    if constexpr (R == 6)
      STEP(FOUR(0) ROW(8192, 4) ROW(10240, 5), FOUR(4) ROW(8196, 4) ROW(10244, 5), SUM(0), SUM(1), SUM(2), SUM(3), SUM(4),
           SUM(5));
    else if constexpr (R == 5)
      STEP(FOUR(0) ROW(8192, 4), FOUR(4) ROW(8196, 4), SUM(0), SUM(1), SUM(2), SUM(3), SUM(4));
    else
      STEP(FOUR(0), FOUR(4), SUM(0), SUM(1), SUM(2), SUM(3));
  }
#undef FOUR
#undef STEP
#undef SUM
#undef DOWN
#undef UP
#undef LOAD
#undef ROW
  static constexpr int columns(int rows) { return rows == 1 ? 8 : rows <= 3 ? 4 : 2; }
  static constexpr int rows(int rows) { return rows; }
};

template <>
struct Halves<Int8> {  // products of words in pairs, exact: at most 2 · 255 · 128 each
  INLINE __m256i first(__m256i b) { return _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8); }
  INLINE __m256i second(__m256i b) { return _mm256_srai_epi16(b, 8); }
  INLINE __m128i first_of_row(__m128i x) { return _mm_and_si128(x, _mm_set1_epi16(0xFF)); }
  INLINE __m128i second_of_row(__m128i x) { return _mm_srli_epi16(x, 8); }
  INLINE void add(__m256i& sum, __m256i x, __m256i b) { sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, b)); }
  template <int R>
  INLINE void step(__m256i sum[R][2], const int32_t* x, const int32_t* panel) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      const __m256i p = _mm256_loadu_si256((const __m256i*)panel), q = _mm256_loadu_si256((const __m256i*)(panel + 8));
      const __m256i b[2] = {half ? second(p) : first(p), half ? second(q) : first(q)};
#pragma GCC unroll 5
      for (int r = 0; r < R; r++) {
        const __m256i one = _mm256_set1_epi32(x[r * 2 * RUN + half]);
        add(sum[r][0], one, b[0]), add(sum[r][1], one, b[1]);
      }
    }
  }
  // A product needs a register of its own before it is added: six rows are two tiles of three.
  static constexpr int columns(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
  static constexpr int rows(int rows) { return rows == 6 ? 3 : rows; }
};

// R widened rows (2 · RUN dwords apart) times `groups` dwords of C vectors of a panel: added to out [R][64].
// LINES: how many cache lines of `ahead` are asked for at each step.
template <class T, int R, int C, int LINES>
INLINE void times_tile(const int32_t* rows, const int32_t* panel, int64_t groups, int32_t* out, const char* ahead) {
  using H = Halves<T>;
  __m256i sum[R][C];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) sum[r][c] = _mm256_loadu_si256((const __m256i*)(out + r * PANEL + 8 * c));
  for (int64_t g = 0; g < groups; g++) {
#pragma GCC unroll 2
    for (int line = 0; line < LINES; line++) _mm_prefetch(ahead + 2 * LINE * g + LINE * line, _MM_HINT_T1);
    if constexpr (C == 2) {
      H::template step<R>(sum, rows + 2 * g, panel + g * PANEL);
      continue;
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      __m256i x[R];
#pragma GCC unroll 3
      for (int r = 0; r < R; r++) x[r] = _mm256_set1_epi32(rows[r * 2 * RUN + 2 * g + half]);
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) {
        __m256i b = _mm256_loadu_si256((const __m256i*)(panel + g * PANEL + 8 * c));
        b = half ? H::second(b) : H::first(b);
#pragma GCC unroll 3
        for (int r = 0; r < R; r++) H::add(sum[r][c], x[r], b);
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) _mm256_storeu_si256((__m256i*)(out + r * PANEL + 8 * c), sum[r][c]);
}

template <class T>
INLINE void widen_row(const int32_t* x, int64_t count, int32_t* out) {
  using H = Halves<T>;
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    __m128i four = _mm_loadu_si128((const __m128i*)(x + i)), a = H::first_of_row(four), b = H::second_of_row(four);
    _mm_storeu_si128((__m128i*)(out + 2 * i), _mm_unpacklo_epi32(a, b));
    _mm_storeu_si128((__m128i*)(out + 2 * i + 4), _mm_unpackhi_epi32(a, b));
  }
  for (; i < count; i++) {
    __m128i one = _mm_cvtsi32_si128(x[i]);
    out[2 * i] = _mm_cvtsi128_si32(H::first_of_row(one)), out[2 * i + 1] = _mm_cvtsi128_si32(H::second_of_row(one));
  }
}

template <class T, int R>
static void rows_times_panel(const int32_t* a, int64_t stride, const int32_t* panel, int64_t groups, void* out,
                             const char* ahead) {
  constexpr int C = Halves<T>::columns(R), PART = Halves<T>::rows(R), LINES = C == 8 ? 2 : 1;
  int32_t rows[R * 2 * RUN];
  std::memset(out, 0, R * PANEL * sizeof(int32_t));
  for (int64_t g = 0; g < groups; g += RUN, a += RUN, panel += RUN * PANEL, ahead += 2 * LINE * RUN) {
    int64_t count = groups - g < RUN ? groups - g : RUN;
    for (int r = 0; r < R; r++) widen_row<T>(a + r * stride, count, rows + r * 2 * RUN);
    for (int r = 0; r < R; r += PART)
      for (int c = 0; c < PANEL; c += 8 * C) {
        const int32_t* first = rows + r * 2 * RUN;
        int32_t* to = (int32_t*)out + r * PANEL + c;
        if (r == 0 && c < 16 * C)  // two lines a step, whatever the tiles
          times_tile<T, PART, C, LINES>(first, panel + c, count, to, ahead + (c ? LINE : 0));
        else
          times_tile<T, PART, C, 0>(first, panel + c, count, to, ahead);
      }
  }
}

// In bfloat16 only: keys, as they lie in a cache.
template <class T, int R>
static void rows_times_plain(const int32_t* a, int64_t stride, const int32_t* weight, int64_t rows, int64_t groups,
                             typename T::Acc* out) {
  using H = Halves<T>;
  const auto eight = [&](int64_t from) {
    __m256i sum[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) sum[r] = _mm256_setzero_si256();
    for (int64_t g = 0; g < groups; g += 8) {
      int64_t count = groups - g < 8 ? groups - g : 8;
      __m256i v[8], m = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) {
        const int32_t* row = weight + (from + i) * groups + g;
        v[i] = from + i < rows ? _mm256_maskload_epi32(row, m) : _mm256_setzero_si256();
        if (rows >= 16) _mm_prefetch((const char*)(row + 16 * groups), _MM_HINT_T0);
      }
      transpose8(v);
      for (int64_t i = 0; i < count; i++) {
        const __m256i b1 = H::first(v[i]), b2 = H::second(v[i]);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
          const __m256i x = _mm256_set1_epi32(a[r * stride + g + i]);
          H::add(sum[r], H::first(x), b1), H::add(sum[r], H::second(x), b2);
        }
      }
    }
    for (int r = 0; r < R; r++) _mm256_storeu_si256((__m256i*)(out + r) + from / 8, sum[r]);
  };
  eight(0), eight(8);
}

#undef INLINE
