// Rows as panels of gemm.h: for products over their numbers, as scores are, and over the rows, as the mix of values is.
#pragma once
#include "gemm.h"

static inline void pack_rows(const bf16* x, int64_t rows, int64_t k, int32_t* panels) {  // k even
  for (int64_t s = 0; s < rows; s += PANEL)
    pack_panel((const int32_t*)(x + s * k), rows - s, k / 2, panels + s * (k / 2));
}

// rows [rows][k] of bfloat16 -> panels [k / 64 rounded up][(rows + odd) / 2 rounded up][64] dwords, a dword two rows'
// numbers: for products that run over the rows. odd 1: the first row is the second of its pair.
static inline void pack_pairs_panel(const bf16* values, int64_t rows, int64_t k, int64_t c, int64_t odd, int32_t* panel) {
  int64_t groups = (rows + odd + 1) / 2;
  for (int64_t g = 0; g < groups; g++) {
    int64_t first = 2 * g - odd, second = first + 1;
    for (int64_t j = 0; j < PANEL; j += 16) {
      Mask m = c + j < k ? tail_mask(k - c - j) : 0;
      Ints pair = ints(0);
      if (first >= 0) pair = load_words(values + first * k + c + j, m);
      if (second < rows) {
        Ints high = load_words(values + second * k + c + j, m);
        pair = either(pair, shl(high, 16));
      }
      store(panel + g * PANEL + j, pair);
    }
  }
}

static inline void pack_pairs(const bf16* values, int64_t rows, int64_t k, int32_t* panels, int64_t odd = 0) {
  for (int64_t c = 0; c < k; c += PANEL) pack_pairs_panel(values, rows, k, c, odd, panels + c * ((rows + odd + 1) / 2));
}
