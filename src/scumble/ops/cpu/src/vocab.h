// What the kernels of the vocabulary operator share: its running statistics, z of a row, logits of one row and panel.
#pragma once
#include <cmath>

#include "gemm.h"
#include "quantize.h"

// The same order as VocabState in ops/cpu/native.py.
struct VocabState {
  const float *table, *heat;             // [65536]; [n], temperatures
  const uint8_t* allowed;                // masks [m, V]; null: all ids
  const int64_t* mask;                   // [n], each row's mask
  const int64_t* targets;                // [n], or null
  float* peak;                           // [n]
  int64_t* argmax;                       // [n]
  double *total, *energy, *mass;         // [n], [n], [n, blocks]
  float* factor;                         // [n]
  float* target_z;                       // [n], where there are targets
  float* best;                           // [n, top]
  int64_t* best_ids;                     // [n, top]
  float* scratch;                        // [threads, room]
  int64_t vocab, blocks, top, room;

  const uint8_t* allowed_of(int64_t row, int64_t first) const {
    return allowed ? allowed + mask[row] * vocab + first : nullptr;
  }
};

// The head: packed as for linear layers, in bfloat16 (q null), or in int8 with shift and scale, and q [n, d], q_scale
// [n] the hidden states.
struct VocabHead {
  const bf16* hidden;  // [n, d]
  const uint8_t* q;
  const float* q_scale;
  const int32_t *panels, *shift;
  const float* scale;
  int64_t d;

  // 64 logits of one row, of ids `at` … at + 63; at is a multiple of 64.
  void logits(int64_t row, int64_t at, bf16* out) const {
    float t[PANEL];
    if (q) {
      int32_t sums[PANEL];
      times_panel<Int8>(1, (const int32_t*)(q + row * d), d / 4, panels + at * (d / 4), d / 4, sums);
      for (int j = 0; j < PANEL; j += 16)
        store(t + j, dequantized(sums + j, shift + at + j, scale + at + j, floats(q_scale[row])));
    } else {
      times_panel<Bf16>(1, (const int32_t*)(hidden + row * d), d / 2, panels + at * (d / 2), d / 2, t);
    }
    for (int j = 0; j < PANEL; j += 16) store(out + j, load(t + j));
  }
};

// z of `width` logits into memory for a multiple of 16; -inf where not allowed. Returns the highest; NaN does not count.
static inline float capped_row(const bf16* logits, const float* table, float heat, const uint8_t* allowed, int64_t width, float* z) {
  const Floats lowest = floats(-INFINITY), divisor = floats(heat);
  Floats high = lowest;
  for (int64_t i = 0; i < width; i += 16) {
    Mask m = tail_mask(width - i), may = m;
    Ints bits = load_words(logits + i, m);
    Floats v = div(gather(table, bits), divisor);
    if (allowed) may &= nonzero(allowed + i, m);
    v = select(may, v, lowest);
    store(z + i, v);
    high = max(v, high);
  }
  return reduce_max(high);
}
