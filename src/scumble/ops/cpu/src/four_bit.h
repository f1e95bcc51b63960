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

static inline Ints fp8_bits(Ints bytes) {  // E4M3 in the low byte of every dword -> float32, exactly
  Ints magnitude = shl(both(bytes, ints(0x7F)), 20);
  Floats value = mul(as_floats(magnitude), floats(0x1p120f));
  Ints sign = shl(both(bytes, ints(0x80)), 24);
  return either(as_ints(value), sign);
}

// Up to 16 rows of `bytes` bytes, `stride` apart, from byte `at` on: 64 bytes of each, transposed into 16 vectors.
static inline void sixteen(const uint8_t* rows, int count, int64_t stride, int64_t at, int64_t bytes, Ints v[16]) {
  int64_t left = bytes - at;
  if (left >= 64) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) v[i] = i < count ? load((const int32_t*)(rows + i * stride + at)) : ints(0);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) v[i] = i < count ? load_bytes(rows + i * stride + at, left) : ints(0);
  }
  transpose16(v);
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

static inline Ints looked_up(Ints nibbles, int table) {
  if (!table) return nibbles;
  return looked_up(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0), nibbles);
}

// Activations of `rows` rows: q int8 [rows, K] in their order, sums [rows, G] of every group.
struct FourRows {
  const int8_t* q;
  const int32_t* sums;
  int64_t k, groups;
};

// A few rows (R ≤ 6) times 16 columns, straight from the weight. PER: dwords of a group, 0 for any number of them.
// out [R][step], 16 of every row written.
template <int R, bool ZEROS, int TABLE, int PER>
struct FewBy16 {
  const FourRows& a;
  const int zero_point;
  const float *scale, *zero;
  const int64_t step;
  Ints acc[R];
  Floats total[R];
  int64_t g = 0;

  inline __attribute__((always_inline)) void begin() {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
      acc[r] = ZEROS ? ints(0) : ints(-zero_point * a.sums[r * a.groups + g]);
  }

  inline __attribute__((always_inline)) void add(Ints v, const int8_t* q) {  // eight numbers of each column
    const Ints low = ints(0x0F0F0F0F);
    const Ints first = looked_up(both(v, low), TABLE);
    const Ints second = looked_up(both(shr(v, 4), low), TABLE);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      add_dot4(acc[r], first, ints(*(const int32_t*)(q + r * a.k)));
      add_dot4(acc[r], second, ints(*(const int32_t*)(q + r * a.k + 4)));
    }
  }

  inline __attribute__((always_inline)) void end() {  // of a group
    const Floats s = load(scale + g * step);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      total[r] = fmadd(to_floats(acc[r]), s, total[r]);
      if (ZEROS)
        total[r] = fnmadd(load(zero + g * step), floats((float)a.sums[r * a.groups + g]),
                                    total[r]);
    }
    g++;
  }

  // Rows of 16 columns lie one after another, so what is needed 48 rows later is asked for line by line.
  inline __attribute__((always_inline)) void run(const uint8_t* rows, int count, float* out, int64_t group) {
    const int64_t bytes = a.k / 2, per_group = group / 8;
    int64_t left = per_group;
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) total[r] = floats(0);
    if (!PER) begin();
    for (int64_t at = 0; at < bytes; at += 64) {
      Ints v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) _mm_prefetch((const char*)(rows + 48 * bytes + 16 * at + LINE * i), _MM_HINT_T1);
      sixteen(rows, count, bytes, at, bytes, v);
      const int8_t* q = a.q + 2 * at;
      if (PER && bytes - at >= 64) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
          if (PER && i % PER == 0) begin();
          add(v[i], q + 8 * i);
          if (PER && i % PER == PER - 1) end();
        }
      } else if (PER) {
        for (int64_t i = 0; i < (bytes - at) / 4; i++) {
          if (i % PER == 0) begin();
          add(v[i], q + 8 * i);
          if (i % PER == PER - 1) end();
        }
      } else {
        const int64_t steps = bytes - at >= 64 ? 16 : (bytes - at) / 4;
        for (int64_t i = 0; i < steps; i++) {
          add(v[i], q + 8 * i);
          if (--left) continue;
          end(), left = per_group;
          if (g < a.groups) begin();
        }
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) store(out + r * step, total[r]);
  }
};

template <int R, bool ZEROS>
__attribute__((noinline)) static void few_by_16(const FourRows& a, const FourBits& w, const FourKind& kind, int64_t column, int count,
                             const float* scale, const float* zero, float* out, int64_t step) {
  const uint8_t* rows = w.packed + column * (a.k / 2);
#define RUN(TABLE, PER) FewBy16<R, ZEROS, TABLE, PER>{a, kind.zero, scale, zero, step, {}, {}}.run(rows, count, out, kind.group)
  if (kind.group == 32 && kind.table == 0)
    RUN(0, 4);
  else if (kind.group == 128 && kind.table == 0)
    RUN(0, 16);
  else if (kind.table == 0)
    RUN(0, 0);
  else
    RUN(1, 0);
#undef RUN
}

// R rows times `count` groups of 64 columns that lie unpacked in `panel` [2 · group / 8 a group][64] dwords; added to out
// [R][64]. R ≤ 3: integer sums, float sums and the panel's dwords then fit the registers.
template <int R, bool ZEROS>
__attribute__((noinline)) static void rows_by_64(const int8_t* q, int64_t k, const int32_t* sums, int64_t groups, const int32_t* panel,
                              int64_t steps, int64_t count, int zero_point, const float* scale, const float* zero,
                              float* out) {
  Floats total[R][4];
#pragma GCC unroll 3
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) total[r][c] = load(out + r * PANEL + 16 * c);
  for (int64_t g = 0; g < count; g++) {
    Ints acc[R][4];
#pragma GCC unroll 3
    for (int r = 0; r < R; r++) {
      const Ints start = ZEROS ? ints(0) : ints(-zero_point * sums[r * groups + g]);
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++) acc[r][c] = start;
    }
    for (int64_t i = 0; i < steps; i++, panel += PANEL, q += 4) {
      Ints b[4];
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++) {
        b[c] = load(panel + 16 * c);
        kept(b[c]);  // GCC would load it again for every row
      }
#pragma GCC unroll 3
      for (int r = 0; r < R; r++) {
        const Ints x = ints(*(const int32_t*)(q + r * k));
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) add_dot4(acc[r][c], b[c], x);
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const Floats s = load(scale + g * PANEL + 16 * c);
#pragma GCC unroll 3
      for (int r = 0; r < R; r++) {
        total[r][c] = fmadd(to_floats(acc[r][c]), s, total[r][c]);
        if (ZEROS)
          total[r][c] = fnmadd(load(zero + g * PANEL + 16 * c),
                                         floats((float)sums[r * groups + g]), total[r][c]);
      }
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) store(out + r * PANEL + 16 * c, total[r][c]);
}

// Bytes `at` … to - 1 of up to 16 rows of nibbles -> dwords of 16 columns of a panel, two an input dword.
template <int TABLE>
static inline void unpack_16(const uint8_t* rows, int count, int64_t bytes, int64_t at, int64_t to, int32_t* panel) {
  const Ints low = ints(0x0F0F0F0F);
  const auto two = [&](Ints v, int32_t* p) {
    store(p, looked_up(both(v, low), TABLE));
    store(p + PANEL, looked_up(both(shr(v, 4), low), TABLE));
  };
  for (; at < to; at += 64, panel += 32 * PANEL) {
    Ints v[16];
    sixteen(rows, count, bytes, at, to, v);
    if (to - at >= 64)
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) two(v[i], panel + 2 * i * PANEL);
    else
      for (int64_t i = 0; i < (to - at) / 4; i++) two(v[i], panel + 2 * i * PANEL);
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
  if (rows <= 6) {
    for (int c = 0; c < width; c += LANES) {
      int count = width - c < LANES ? (int)(width - c) : LANES;
      switch (rows) {
        case 1: few_by_16<1, ZEROS>(a, w, kind, column + c, count, scale + c, zero + c, out + c, PANEL); break;
        case 2: few_by_16<2, ZEROS>(a, w, kind, column + c, count, scale + c, zero + c, out + c, PANEL); break;
        case 3: few_by_16<3, ZEROS>(a, w, kind, column + c, count, scale + c, zero + c, out + c, PANEL); break;
        case 4: few_by_16<4, ZEROS>(a, w, kind, column + c, count, scale + c, zero + c, out + c, PANEL); break;
        case 5: few_by_16<5, ZEROS>(a, w, kind, column + c, count, scale + c, zero + c, out + c, PANEL); break;
        default: few_by_16<6, ZEROS>(a, w, kind, column + c, count, scale + c, zero + c, out + c, PANEL);
      }
    }
    return;
  }
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
    const float *s = scale + g * PANEL, *z = zero + g * PANEL;
    for (int64_t r = 0; r < rows; r += 3) {
      const int8_t* q = a.q + r * a.k + g * kind.group;
      const int32_t* sums = a.sums + r * groups + g;
      float* o = out + r * PANEL;
#define BY(R) rows_by_64<R, ZEROS>(q, a.k, sums, groups, panel, 2 * per_group, several, kind.zero, s, z, o)
      if (rows - r >= 3)
        BY(3);
      else if (rows - r == 2)
        BY(2);
      else
        BY(1);
#undef BY
    }
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
