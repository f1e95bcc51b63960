// Products of int8 activations with weights of four bits a number, as they lie in a checkpoint: row by row, two numbers
// a byte, scales by groups along the row. So the file's own pages serve, and nothing is packed at load.
//
//     out[n, c] = x_scale[n] · factor[c] · Σ_g scale[c, g] · (Σ_k value[c, k] · q[n, k] - zero[c, g] · Σ_k q[n, k])
//
// Sums inside a group are exact integers; groups are added in float32 in ascending order, whatever the number of rows:
// a row's result does not depend on the others. Sixteen rows of a weight become columns of lanes by a transposition in
// registers, so that a dword lane holds eight numbers of one output; their low and high halves are two dot products.
//
// N rows, K numbers a row, G groups a row. K and the group are multiples of 8; activations lie in the order
// 0 2 4 6 1 3 5 7 inside every eight.
#pragma once
#include <cmath>
#include <vector>

#include "gemm.h"

struct FourBits {
  const uint8_t* packed;  // [columns, K / 2]
  const uint8_t* scale;   // [columns, G], in the format `scales` of FourKind
  const float* zero;      // [columns, G], or null: FourKind's
  const float* factor;    // [1], or null: 1
};

struct FourKind {
  int64_t group;
  int scales;          // 0 bfloat16, 1 float16, 2 float32, 3 fp8 (E4M3)
  int table;           // 0: values 0 … 15; 1: E2M1, doubled and raised by 12 to be unsigned
  int zero;            // of all, where there are none by group
  float unit() const { return table ? 0.5f : 1.0f; }
};

constexpr int LANES = 16;

// Activations of `rows` rows: q int8 [rows, K] in their order, sums [rows, G] of every group.
struct FourRows {
  const int8_t* q;
  const int32_t* sums;
  int64_t k, groups;
};

// sixteen: up to 16 rows of `bytes` bytes, `stride` apart, from byte `at` on: 64 bytes of each, transposed into 16 vectors.
// Up to FEW rows times 64 columns straight from the weight (few_rows), or many with a panel unpacked before (unpack_16,
// rows_by_panel).
#ifdef __AVX512BF16__
#include "four_bit_avx512.h"
#else
#include "four_bit_avx2.h"
#endif

static inline Ints fp8_bits(Ints bytes) {  // E4M3 in the low byte of every dword -> float32, exactly
  Ints magnitude = shl(both(bytes, ints(0x7F)), 20);
  Floats value = mul(as_floats(magnitude), floats(0x1p120f));
  Ints sign = shl(both(bytes, ints(0x80)), 24);
  return either(as_ints(value), sign);
}

// Scales of up to 16 columns -> float32 [G][step], 16 of every row written.
static inline void spread_scales(const uint8_t* scale, int count, int64_t groups, int kind, float unit, float* out,
                                 int64_t step) {
  const int64_t size = kind == 2 ? 4 : kind == 3 ? 1 : 2, each = 4 / size;
  const Floats u = floats(unit);
  for (int64_t at = 0; at < groups * size; at += 64) {
    Ints v[16];
    sixteen(scale, count, groups * size, at, groups * size, v);
    for (int i = 0; i < 16; i++)
      for (int64_t j = 0; j < each; j++) {
        int64_t g = (at / 4 + i) * each + j;
        if (g >= groups) return;
        Ints x = v[i];
        Floats f;
        if (kind == 0)
          f = as_floats(j ? both(x, ints(0xFFFF0000)) : shl(x, 16));
        else if (kind == 1)
          f = half_floats(j ? shr(x, 16) : x);
        else if (kind == 2)
          f = as_floats(x);
        else
          f = as_floats(fp8_bits(shr(x, 8 * (int)j)));
        store(out + g * step, mul(f, u));
      }
  }
}

// Room of one thread.
struct FourRoom {
  std::vector<float> scale, zero;
  std::vector<int32_t> panel;
  int32_t* of_panel(int64_t size) {
    if ((int64_t)panel.size() < size) panel.resize(size);
    return panel.data();
  }
};

// `rows` rows times columns column … column + 63 (or up to `columns`): out float32 [rows][64], without x's scales.
template <bool ZEROS>
static void four_panel(const FourRows& a, int64_t rows, const FourBits& w, const FourKind& kind, int64_t column,
                       int64_t columns, float* out, FourRoom& room) {
  const int64_t groups = a.groups, bytes = a.k / 2;
  if ((int64_t)room.scale.size() < groups * PANEL) room.scale.resize(groups * PANEL);
  if (ZEROS && (int64_t)room.zero.size() < groups * PANEL) room.zero.resize(groups * PANEL);
  float *scale = room.scale.data(), *zero = room.zero.data();
  const int64_t size = kind.scales == 2 ? 4 : kind.scales == 3 ? 1 : 2;
  const float unit = kind.unit() * (w.factor ? *w.factor : 1.0f);
  const int64_t width = columns - column < PANEL ? columns - column : PANEL;
  for (int c = 0; c < PANEL; c += LANES) {
    int count = width - c < LANES ? (width > c ? (int)(width - c) : 0) : LANES;
    spread_scales(w.scale + (column + c) * groups * size, count, groups, kind.scales, unit, scale + c, PANEL);
    if (ZEROS) {  // zero · scale: what a group's sum of activations is multiplied by
      spread_scales((const uint8_t*)(w.zero + (column + c) * groups), count, groups, 2, 1.0f, zero + c, PANEL);
      for (int64_t g = 0; g < groups; g++)
        store(zero + g * PANEL + c, mul(load(zero + g * PANEL + c),
                                                             load(scale + g * PANEL + c)));
    }
  }
  if (rows <= FEW) return few_rows<ZEROS>(a, rows, w, kind, column, width, scale, zero, out);
  const int64_t per_group = kind.group / 8;
  // As many whole groups at a time as keep the unpacked panel in the first cache.
  const int64_t at_once = 256 / kind.group > 0 ? 256 / kind.group : 1;
  int32_t* panel = room.of_panel(2 * at_once * per_group * PANEL);
  std::memset(out, 0, rows * PANEL * sizeof(float));
  for (int64_t g = 0; g < groups; g += at_once) {
    const int64_t several = groups - g < at_once ? groups - g : at_once;
    const int64_t from = g * kind.group / 2, to = from + several * kind.group / 2;
    // The next panel of columns follows in memory; its share of this turn is asked for while this one is worked on.
    const char* ahead = (const char*)(w.packed + (column + PANEL) * bytes + from * PANEL);
    for (int64_t i = 0; i < (to - from) * PANEL; i += LINE) _mm_prefetch(ahead + i, _MM_HINT_T1);
    for (int c = 0; c < PANEL; c += LANES) {
      const int count = width - c < LANES ? (width > c ? (int)(width - c) : 0) : LANES;
      const uint8_t* first = w.packed + (column + c) * bytes;
      if (kind.table)
        unpack_16<1>(first, count, bytes, from, to, panel + c);
      else
        unpack_16<0>(first, count, bytes, from, to, panel + c);
    }
    rows_by_panel<ZEROS>(a, rows, g, g * kind.group, panel, 2 * per_group, several, kind, scale + g * PANEL,
                         zero + g * PANEL, out);
  }
}

static inline void four_product(const FourRows& a, int64_t rows, const FourBits& w, const FourKind& kind, int64_t column,
                                int64_t columns, float* out, FourRoom& room) {
  if (w.zero)
    four_panel<true>(a, rows, w, kind, column, columns, out, room);
  else
    four_panel<false>(a, rows, w, kind, column, columns, out, room);
}

// One row in int8, in the order of the products, with the sums of its groups; returns its scale.
template <class X>
static inline float four_quantize(const X* x, int64_t k, int64_t group, int8_t* q, int32_t* sums) {
  Floats high = floats(0);
  for (int64_t i = 0; i < k; i += 16) high = max(high, abs(load(x + i, tail_mask(k - i))));
  float most = reduce_max(high), scale = most > 0 ? most / 127.0f : 1.0f;
  const Floats inverse = floats(1.0f / scale);
  const Bytes order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  for (int64_t i = 0; i < k; i += 16) {
    Mask m = tail_mask(k - i);
    Ints n = to_ints(mul(load(x + i, m), inverse));
    n = min(max(n, ints(-127)), ints(127));
    store((uint8_t*)q + i, m, _mm_shuffle_epi8(low_bytes(n), order));
  }
  for (int64_t g = 0; g < k / group; g++) {
    int32_t sum = 0;
    for (int64_t i = 0; i < group; i++) sum += q[g * group + i];
    sums[g] = sum;
  }
  return scale;
}
