// Linear layers: bfloat16 for few rows (autoregressive steps: memory speed), int8 for any number of rows.
#include "gemm.h"
#include "quantize.h"

extern "C" {

// out[n, columns] = x[n, k] · weight[columns, k]ᵀ, n ≤ 4, all bfloat16, sums in float32.
void scumble_few_rows(const bf16* x, const bf16* weight, bf16* out, int64_t n, int64_t k, int64_t columns,
                      int threads) {
  constexpr int64_t BLOCK = 64;
#pragma omp parallel for num_threads(threads) if (columns * k > 65536)
  for (int64_t c = 0; c < columns; c += BLOCK) {
    int64_t width = columns - c < BLOCK ? columns - c : BLOCK;
    float t[4 * BLOCK];
    few_rows((int)n, x, k, weight + c * k, width, k, t, BLOCK);
    for (int64_t r = 0; r < n; r++)
      for (int64_t i = 0; i < width; i += 16) {
        __mmask16 m = tail_mask(width - i);
        store(out + r * columns + c + i, m, _mm512_maskz_loadu_ps(m, t + r * BLOCK + i));
      }
  }
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
#pragma omp parallel for num_threads(threads) if (n * columns * k > 65536)
  for (int64_t c = 0; c < columns; c += PANEL) {
    int32_t t[ROWS * PANEL];
    for (int64_t r = 0; r < n; r += ROWS) {
      int rows = n - r < ROWS ? (int)(n - r) : ROWS;
      times_panel<Int8>(rows, (const int32_t*)(q + r * k), groups, panels + c * groups, groups, t);
      for (int i = 0; i < rows; i++) {
        __m512 own = _mm512_set1_ps(row_scale[r + i]);
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
