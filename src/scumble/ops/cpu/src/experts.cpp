// Mixture of experts: rows gathered by expert, gate and up in one sweep with GeGLU while the sums are in cache, down,
// and a weighted sum a token in a fixed order. A panel of gate_up holds 32 gate columns and their 32 up columns.
#include "gemm.h"
#include "groups.h"
#include "guard.h"
#include "quantize.h"

constexpr int HALF = PANEL / 2;

namespace {

// Rows a block, so that no block is left with very few: those would wait for the panel to come from the cache.
int even_step(int64_t rows) {
  int64_t blocks = (rows + ROWS - 1) / ROWS;
  return (int)((rows + blocks - 1) / blocks);
}

// One expert's weights: packed (see scumble_pack_experts), or as in the checkpoint, packed on the way into `room`.
struct Bf16Weights {
  const int32_t *up_panels, *down_panels;
  const bf16 *gate_up, *down;
  int32_t* room;
};

// What to ask for during block number `block` of a packed panel: its part of the panel that lies behind.
const void* ahead_of(const int32_t* panel, const Bf16Weights& w, int64_t size, int64_t block) {
  int64_t bytes = PANEL * size * 2, at = LINE * size * block;
  return w.up_panels && at < bytes ? (const char*)panel + bytes + at : nullptr;
}

void bf16_tokens(const bf16* x, int64_t rows, const Bf16Weights& w, bf16* h, int64_t d, int64_t f, bf16* const* to) {
  float t[ROWS * PANEL];
  const int step = even_step(rows);
  for (int64_t c = 0; c < f; c += HALF) {
    const int32_t* panel = w.up_panels + 2 * c * (d / 2);
    if (!w.up_panels) {
      pack_panel((const int32_t*)(w.gate_up + c * d), f - c, d / 2, w.room, 0, 2);
      pack_panel((const int32_t*)(w.gate_up + (f + c) * d), f - c, d / 2, w.room, 2, 2);
      panel = w.room;
    }
    for (int64_t r = 0; r < rows; r += step) {
      int count = rows - r < step ? (int)(rows - r) : step;
      times_panel<Bf16>(count, (const int32_t*)(x + r * d), d / 2, panel, d / 2, t, ahead_of(panel, w, d, r / step));
      for (int i = 0; i < count; i++)
        for (int64_t j = 0; j < HALF && c + j < f; j += 16) {
          Floats gate = rounded(load(t + i * PANEL + j)), up = load(t + i * PANEL + HALF + j);
          store(h + (r + i) * f + c + j, tail_mask(f - c - j), mul(rounded(gelu16(gate)), rounded(up)));
        }
    }
  }
  for (int64_t c = 0; c < d; c += PANEL) {
    const int32_t* panel = w.down_panels + c * (f / 2);
    if (!w.down_panels) {
      pack_panel((const int32_t*)(w.down + c * f), d - c, f / 2, w.room);
      panel = w.room;
    }
    for (int64_t r = 0; r < rows; r += step) {
      int count = rows - r < step ? (int)(rows - r) : step;
      times_panel<Bf16>(count, (const int32_t*)(h + r * f), f / 2, panel, f / 2, t, ahead_of(panel, w, f, r / step));
      for (int i = 0; i < count; i++)
        for (int64_t j = 0; j < PANEL && c + j < d; j += 16)
          store(to[r + i] + c + j, tail_mask(d - c - j), load(t + i * PANEL + j));
    }
  }
}

// int8: gate_up panels [f / 32 rounded up][d / 4][64], down panels [d / 64 rounded up][f / 4][64].
struct Int8Weights {
  const int32_t *panels, *shift;
  const float* scale;
};

void int8_tokens(const uint8_t* x, const float* x_scale, int64_t rows, Int8Weights gate_up, Int8Weights down, float* h,
                 uint8_t* q, int64_t d, int64_t f, bf16* const* to) {
  int32_t t[ROWS * PANEL];
  const int step = even_step(rows);
  int64_t groups = d / 4;
  for (int64_t c = 0; c < f; c += HALF)
    for (int64_t r = 0; r < rows; r += step) {
      int count = rows - r < step ? (int)(rows - r) : step;
      times_panel<Int8>(count, (const int32_t*)(x + r * d), groups, gate_up.panels + 2 * c * groups, groups, t);
      for (int i = 0; i < count; i++)
        for (int64_t j = 0; j < HALF && c + j < f; j += 16) {
          Floats own = floats(x_scale[r + i]);
          int64_t at = 2 * c + j;
          Floats gate = dequantized(t + i * PANEL + j, gate_up.shift + at, gate_up.scale + at, own);
          Floats up = dequantized(t + i * PANEL + HALF + j, gate_up.shift + at + HALF, gate_up.scale + at + HALF, own);
          store(h + (r + i) * f + c + j, tail_mask(f - c - j), mul(gelu16(gate), up));
        }
    }
  groups = f / 4;
  for (int64_t r = 0; r < rows; r++) {
    float scale = quantize_row(h + r * f, f, q + r * f);
    h[r * f] = scale;  // the row itself is not needed any more
  }
  for (int64_t c = 0; c < d; c += PANEL)
    for (int64_t r = 0; r < rows; r += step) {
      int count = rows - r < step ? (int)(rows - r) : step;
      times_panel<Int8>(count, (const int32_t*)(q + r * f), groups, down.panels + c * groups, groups, t);
      for (int i = 0; i < count; i++)
        for (int64_t j = 0; j < PANEL && c + j < d; j += 16)
          store(to[r + i] + c + j, tail_mask(d - c - j),
                dequantized(t + i * PANEL + j, down.shift + c + j, down.scale + c + j, floats(h[(r + i) * f])));
    }
}
}  // namespace

extern "C" {

// gate_up [experts, 2f, d] (gate first), down [experts, d, f], d and f even -> panels of dwords: of gate_up
// [experts][f / 32 rounded up][d / 2][64], 32 gate columns and their 32 up columns; of down
// [experts][d / 64 rounded up][f / 2][64].
void scumble_pack_experts(const bf16* gate_up, const bf16* down, int32_t* up_panels, int32_t* down_panels,
                          int64_t experts, int64_t d, int64_t f, int threads) {
  int64_t ups = (f + HALF - 1) / HALF, downs = (d + PANEL - 1) / PANEL;
#pragma omp parallel for num_threads(threads)
  for (int64_t e = 0; e < experts; e++) {
    for (int64_t p = 0; p < ups; p++) {
      const bf16* gate = gate_up + (e * 2 * f + p * HALF) * d;
      int32_t* panel = up_panels + (e * ups + p) * (d / 2) * PANEL;
      pack_panel((const int32_t*)gate, f - p * HALF, d / 2, panel, 0, 2);
      pack_panel((const int32_t*)(gate + f * d), f - p * HALF, d / 2, panel, 2, 2);
    }
    for (int64_t p = 0; p < downs; p++)
      pack_panel((const int32_t*)(down + (e * d + p * PANEL) * f), d - p * PANEL, f / 2,
                 down_panels + (e * downs + p) * (f / 2) * PANEL);
  }
}

// x [n, d]; weights float32 and chosen int64 [n, k]; slots: room for [n · k, d]; out [n, d]. d and f even. All bfloat16
// where not said otherwise. The weights as packed above, or (panels null) as they lie in the checkpoint.
int scumble_experts(const bf16* x, const float* weights, const int64_t* chosen, const int32_t* up_panels,
                    const int32_t* down_panels, const bf16* gate_up, const bf16* down, bf16* slots, bf16* out,
                    int64_t n, int64_t k, int64_t experts, int64_t d, int64_t f, int threads) {
  Guard guard;
  guard([&] {
    Groups groups(chosen, n * k, experts);
    int64_t up_size = (f + HALF - 1) / HALF * (d / 2) * PANEL, down_size = (d + PANEL - 1) / PANEL * (f / 2) * PANEL;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t e = 0; e < experts; e++) guard([&] {
        int64_t rows = groups.begin[e + 1] - groups.begin[e];
        if (rows == 0) return;
        static thread_local std::vector<bf16> gathered, hidden;
        static thread_local std::vector<int32_t> panels;
        static thread_local std::vector<bf16*> to;
        bf16 *a = room(gathered, rows * d), *h = room(hidden, rows * f);
        bf16** target = room(to, rows);
        for (int64_t r = 0; r < rows; r++) {
          int64_t slot = groups.slots[groups.begin[e] + r];
          std::memcpy(a + r * d, x + slot / k * d, d * sizeof(bf16));
          target[r] = slots + slot * d;
        }
        Bf16Weights w = {nullptr, nullptr, nullptr, nullptr, nullptr};
        if (up_panels)
          w.up_panels = up_panels + e * up_size, w.down_panels = down_panels + e * down_size;
        else
          w.gate_up = gate_up + e * 2 * f * d, w.down = down + e * d * f,
          w.room = room(panels, (d > f ? d : f) / 2 * PANEL);
        bf16_tokens(a, rows, w, h, d, f, target);
      });
    if (!guard.result()) combine(slots, weights, out, n, k, d, threads);
  });
  return guard.result();
}

// The same with int8 weights packed by formats/: panels, shift and scale of gate_up and down, one expert after another.
int scumble_experts_int8(const bf16* x, const float* weights, const int64_t* chosen, const int32_t* up_panels,
                          const int32_t* up_shift, const float* up_scale, const int32_t* down_panels,
                          const int32_t* down_shift, const float* down_scale, bf16* slots, uint8_t* x_q, float* x_scale,
                          bf16* out, int64_t n, int64_t k, int64_t experts, int64_t d, int64_t f, int threads) {
  Guard guard;
  guard([&] {
    Groups groups(chosen, n * k, experts);
    int64_t up_columns = (f + HALF - 1) / HALF * PANEL, down_columns = (d + PANEL - 1) / PANEL * PANEL;
#pragma omp parallel for num_threads(threads) if (n * d > 65536)
    for (int64_t row = 0; row < n; row++) x_scale[row] = quantize_row(x + row * d, d, x_q + row * d);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t e = 0; e < experts; e++) guard([&] {
        int64_t rows = groups.begin[e + 1] - groups.begin[e];
        if (rows == 0) return;
        static thread_local std::vector<uint8_t> gathered, quantized;
        static thread_local std::vector<float> hidden, scales;
        static thread_local std::vector<bf16*> to;
        uint8_t *a = room(gathered, rows * d), *q = room(quantized, rows * f);
        float *h = room(hidden, rows * f), *s = room(scales, rows);
        bf16** target = room(to, rows);
        for (int64_t r = 0; r < rows; r++) {
          int64_t slot = groups.slots[groups.begin[e] + r], token = slot / k;
          std::memcpy(a + r * d, x_q + token * d, d);
          s[r] = x_scale[token];
          target[r] = slots + slot * d;
        }
        Int8Weights gate_up = {up_panels + e * up_columns * (d / 4), up_shift + e * up_columns,
                               up_scale + e * up_columns};
        Int8Weights down = {down_panels + e * down_columns * (f / 4), down_shift + e * down_columns,
                            down_scale + e * down_columns};
        int8_tokens(a, s, rows, gate_up, down, h, q, d, f, target);
      });
    if (!guard.result()) combine(slots, weights, out, n, k, d, threads);
  });
  return guard.result();
}
}
