// The inner product kernel: a few rows times one packed panel of 64 columns, for bfloat16 and for int8.
//
// A panel holds 64 rows of a weight [N, K] (64 outputs) as dwords, group by group along K: [K/G][64], where a dword
// is G = 2 bfloat16 or 4 int8 numbers, what one dot-product instruction takes. So both formats share everything but
// the instruction. Six rows by 64 columns are 24 accumulators: ten loads a step feed 24 dot products. AVX2 has neither the
// instructions nor the registers: gemm_avx2.h says how it takes the same sums.
#pragma once
#include "simd.h"

struct Bf16 {
  using Acc = Floats;
  static constexpr int G = 2;
  static inline Acc zero() { return floats(0); }
  static inline Acc dot(Acc c, Ints a, Ints b) { return dot2(c, a, b); }
  static inline void save(int32_t* p, Acc c) { store((float*)p, c); }
};

struct Int8 {  // activations unsigned (shifted by 128), weights signed
  using Acc = Ints;
  static constexpr int G = 4;
  static inline Acc zero() { return ints(0); }
  static inline Acc dot(Acc c, Ints a, Ints b) { return dot4(c, a, b); }
  static inline void save(int32_t* p, Acc c) { store(p, c); }
};

constexpr int PANEL = 64, ROWS = 6, LINE = 64;

#ifndef __AVX512BF16__
#include "gemm_avx2.h"
#else
// a: R rows of `groups` dwords, `stride` dwords apart; panel [groups][64]; out: 32-bit numbers [R][64].
// ahead: memory that will be read next; asked for at two cache lines a step, so that it arrives while this computes.
template <class T, int R>
static inline void rows_times_panel(const int32_t* a, int64_t stride, const int32_t* panel, int64_t groups, void* out,
                                    const char* ahead) {
  typename T::Acc acc[R][4];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) acc[r][c] = T::zero();
  for (int64_t g = 0; g < groups; g++) {
    Ints b[4];
    _mm_prefetch(ahead + 2 * LINE * g, _MM_HINT_T1);
    _mm_prefetch(ahead + 2 * LINE * g + LINE, _MM_HINT_T1);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) b[c] = load(panel + g * PANEL + 16 * c);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      Ints x = ints(a[r * stride + g]);
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++) acc[r][c] = T::dot(acc[r][c], x, b[c]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) T::save((int32_t*)out + r * PANEL + 16 * c, acc[r][c]);
}

// R rows of dwords times up to 16 rows of a weight that lies as in the checkpoint [rows][groups]: blocks of 16 by 16 dwords
// are turned in registers. Every sum is taken in the same order as with a packed panel. out: R vectors of 16 numbers.
template <class T, int R>
static inline void rows_times_plain(const int32_t* a, int64_t stride, const int32_t* weight, int64_t rows, int64_t groups,
                                    typename T::Acc* out) {
  typename T::Acc acc[R];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) acc[r] = T::zero();
  for (int64_t g = 0; g < groups; g += 16) {
    Mask m = tail_mask(groups - g);
    int64_t count = groups - g < 16 ? groups - g : 16;
    Ints v[16];
    if (rows >= 16) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) {
        _mm_prefetch((const char*)(weight + (i + 16) * groups + g), _MM_HINT_T0);
        v[i] = load(weight + i * groups + g, m);
      }
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++)
        v[i] = i < rows ? load(weight + i * groups + g, m) : ints(0);
    }
    transpose16(v);
    if (count == 16) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++)
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) acc[r] = T::dot(acc[r], ints(a[r * stride + g + i]), v[i]);
    } else {
      for (int64_t i = 0; i < count; i++)
        for (int r = 0; r < R; r++) acc[r] = T::dot(acc[r], ints(a[r * stride + g + i]), v[i]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) out[r] = acc[r];
}
#endif

template <class T>
static inline void times_panel(int rows, const int32_t* a, int64_t stride, const int32_t* panel, int64_t groups,
                               void* out, const void* next = nullptr) {
  const char* ahead = (const char*)(next ? next : panel);
  switch (rows) {
    case 6: return rows_times_panel<T, 6>(a, stride, panel, groups, out, ahead);
    case 5: return rows_times_panel<T, 5>(a, stride, panel, groups, out, ahead);
    case 4: return rows_times_panel<T, 4>(a, stride, panel, groups, out, ahead);
    case 3: return rows_times_panel<T, 3>(a, stride, panel, groups, out, ahead);
    case 2: return rows_times_panel<T, 2>(a, stride, panel, groups, out, ahead);
    default: return rows_times_panel<T, 1>(a, stride, panel, groups, out, ahead);
  }
}

// Up to 16 rows of `groups` dwords -> column block `block` (16 columns) of a panel; missing rows become zeros.
static inline void pack_block(const int32_t* weight, int64_t rows, int64_t groups, int32_t* panel, int block) {
  for (int64_t g = 0; g < groups; g += 16) {
    Mask m = tail_mask(groups - g);
    int64_t count = groups - g < 16 ? groups - g : 16;
    Ints v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
      v[i] = i < rows ? load(weight + i * groups + g, m) : ints(0);
    transpose16(v);
    for (int64_t i = 0; i < count; i++) store(panel + (g + i) * PANEL + 16 * block, v[i]);
  }
}

// weight: `rows` rows -> panel [groups][64], of which `blocks` column blocks from `from` on are written.
static inline void pack_panel(const int32_t* weight, int64_t rows, int64_t groups, int32_t* panel, int from = 0,
                              int blocks = 4) {
  for (int c = 0; c < blocks; c++) pack_block(weight + 16 * c * groups, rows - 16 * c, groups, panel, from + c);
}

template <class T>
static inline void times_plain(int rows, const int32_t* a, int64_t stride, const int32_t* weight, int64_t columns,
                               int64_t groups, typename T::Acc* out) {
  switch (rows) {
    case 6: return rows_times_plain<T, 6>(a, stride, weight, columns, groups, out);
    case 5: return rows_times_plain<T, 5>(a, stride, weight, columns, groups, out);
    case 4: return rows_times_plain<T, 4>(a, stride, weight, columns, groups, out);
    case 3: return rows_times_plain<T, 3>(a, stride, weight, columns, groups, out);
    case 2: return rows_times_plain<T, 2>(a, stride, weight, columns, groups, out);
    default: return rows_times_plain<T, 1>(a, stride, weight, columns, groups, out);
  }
}
