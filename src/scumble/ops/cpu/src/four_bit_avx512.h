// The four-bit products of four_bit.h with AVX-512 and VNNI: a few rows straight from the weight, many from an unpacked
// panel.
#pragma once

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

static inline Ints looked_up(Ints nibbles, int table) {
  if (!table) return nibbles;
  return looked_up(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0), nibbles);
}

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

constexpr int FEW = 6;

// Up to six rows, straight from the weight.
template <bool ZEROS>
static void few_rows(const FourRows& a, int64_t rows, const FourBits& w, const FourKind& kind, int64_t column,
                     int64_t width, const float* scale, const float* zero, float* out) {
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
}

// `rows` rows from their number `at` of K on, times `count` groups of the unpacked panel [steps a group][64]: added to out
// [rows][64].
template <bool ZEROS>
static void rows_by_panel(const FourRows& a, int64_t rows, int64_t group, int64_t at, const int32_t* panel, int64_t steps,
                          int64_t count, const FourKind& kind, const float* scale, const float* zero, float* out) {
  for (int64_t r = 0; r < rows; r += 3) {
    const int8_t* q = a.q + r * a.k + at;
    const int32_t* sums = a.sums + r * a.groups + group;
    float* o = out + r * PANEL;
#define BY(R) rows_by_64<R, ZEROS>(q, a.k, sums, a.groups, panel, steps, count, kind.zero, scale, zero, o)
    if (rows - r >= 3)
      BY(3);
    else if (rows - r == 2)
      BY(2);
    else
      BY(1);
#undef BY
  }
}
