// Linear layers in bfloat16 and in int8, for any number of rows.
#include <vector>

#include "gemm.h"
#include "guard.h"
#include "quantize.h"

namespace {

// Tasks of one product: a panel of 64 columns by a run of rows, so that few panels keep all threads busy too.
struct Tasks {
  int64_t panels, chunks, size;
  Tasks(int64_t rows, int64_t columns, int threads) {
    panels = (columns + PANEL - 1) / PANEL;
    chunks = panels >= 4 * threads ? 1 : (4 * threads + panels - 1) / panels;
    int64_t blocks = (rows + ROWS - 1) / ROWS;
    if (chunks > blocks) chunks = blocks;
    size = (blocks + chunks - 1) / chunks * ROWS;
  }
};

}  // namespace

extern "C" {

// weight bfloat16 [rows, k], k even -> panels [rows / 64 rounded up][k / 2][64] dwords.
void scumble_pack_bf16(const bf16* weight, int32_t* panels, int64_t rows, int64_t k, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; r += PANEL)
    pack_panel((const int32_t*)(weight + r * k), rows - r, k / 2, panels + r * (k / 2));
}

// out[n, columns] = x[n, k] · weight[columns, k]ᵀ in bfloat16, k even, sums in float32 along k from its first pair of
// numbers to its last: the same bits for a row whatever n is. panels: the weight as packed above; null: `weight` as it
// lies in the checkpoint, which is then packed on the way.
int scumble_linear(const bf16* x, const int32_t* panels, const bf16* weight, bf16* out, int64_t n, int64_t k,
                   int64_t columns, int threads) {
  int64_t groups = k / 2;
  Guard guard;
  Tasks tasks(n, columns, panels ? threads : 1);
#pragma omp parallel for num_threads(threads) if (n * columns * k > 65536)
  for (int64_t task = 0; task < tasks.panels * tasks.chunks; task++) guard([&] {
      static thread_local std::vector<int32_t> packed;
      int64_t c = task / tasks.chunks * PANEL, first = task % tasks.chunks * tasks.size;
      int64_t end = first + tasks.size < n ? first + tasks.size : n;
      const int32_t* panel = panels ? panels + c * groups : nullptr;
      if (!panel) {
        if ((int64_t)packed.size() < groups * PANEL) packed.resize(groups * PANEL);
        pack_panel((const int32_t*)(weight + c * k), columns - c, groups, packed.data());
        panel = packed.data();
      }
      float t[ROWS * PANEL];
      for (int64_t r = first; r < end; r += ROWS) {
        int rows = end - r < ROWS ? (int)(end - r) : ROWS;
        times_panel<Bf16>(rows, (const int32_t*)(x + r * k), groups, panel, groups, t);
        for (int i = 0; i < rows; i++)
          for (int64_t j = 0; j < PANEL && c + j < columns; j += 16)
            store(out + (r + i) * columns + c + j, tail_mask(columns - c - j), load(t + i * PANEL + j));
      }
    });
  return guard.result();
}

// weight int8 [rows, k], k a multiple of 4 -> panels [rows / 64 rounded up][k / 4][64] dwords; and shift [rounded up]:
// 128 · Σ weight, what shifted activations add to a product.
void scumble_pack_int8(const int8_t* weight, int32_t* panels, int32_t* shift, int64_t rows, int64_t k) {
  int64_t groups = k / 4;
  for (int64_t r = 0; r < rows; r += PANEL)
    pack_panel((const int32_t*)(weight + r * k), rows - r, groups, panels + r * groups);
  for (int64_t r = 0; r < rows; r++) {
    int32_t sum = 0;
    for (int64_t i = 0; i < k; i++) sum += weight[r * k + i];
    shift[r] = 128 * sum;
  }
}

// x bfloat16 [n, k] -> q uint8 [n, k], scale [n].
void scumble_quantize_rows(const bf16* x, uint8_t* q, float* scale, int64_t n, int64_t k, int threads) {
#pragma omp parallel for num_threads(threads) if (n * k > 65536)
  for (int64_t row = 0; row < n; row++) scale[row] = quantize_row(x + row * k, k, q + row * k);
}

// out[n, columns] bfloat16 = (q · row_scale) · (weight · scale)ᵀ; panels, shift as packed above, scale [rounded up].
void scumble_linear_int8(const uint8_t* q, const float* row_scale, const int32_t* panels, const int32_t* shift,
                         const float* scale, bf16* out, int64_t n, int64_t k, int64_t columns, int threads) {
  int64_t groups = k / 4;
  Tasks tasks(n, columns, threads);
#pragma omp parallel for num_threads(threads) if (n * columns * k > 65536)
  for (int64_t task = 0; task < tasks.panels * tasks.chunks; task++) {
    int64_t c = task / tasks.chunks * PANEL, first = task % tasks.chunks * tasks.size;
    int64_t end = first + tasks.size < n ? first + tasks.size : n;
    int32_t t[ROWS * PANEL];
    for (int64_t r = first; r < end; r += ROWS) {
      int rows = end - r < ROWS ? (int)(end - r) : ROWS;
      times_panel<Int8>(rows, (const int32_t*)(q + r * k), groups, panels + c * groups, groups, t);
      for (int i = 0; i < rows; i++) {
        Floats own = floats(row_scale[r + i]);
        for (int64_t j = 0; j < PANEL && c + j < columns; j += 16)
          store(out + (r + i) * columns + c + j, tail_mask(columns - c - j),
                dequantized(t + i * PANEL + j, shift + c + j, scale + c + j, own));
      }
    }
  }
}

// Both in one call: x bfloat16 [n, k] is quantized into q and row_scale, then multiplied.
void scumble_quantized_linear(const bf16* x, uint8_t* q, float* row_scale, const int32_t* panels, const int32_t* shift,
                              const float* scale, bf16* out, int64_t n, int64_t k, int64_t columns, int threads) {
  scumble_quantize_rows(x, q, row_scale, n, k, threads);
  scumble_linear_int8(q, row_scale, panels, shift, scale, out, n, k, columns, threads);
}
}
