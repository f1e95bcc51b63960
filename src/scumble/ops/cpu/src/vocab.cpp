// The vocabulary operator's statistics of one tile of logits, row by row, while the row is in the first-level cache.
//
// A bfloat16 logit has one of 65,536 values, so z = softcap(logit) / temperature is a table, made by the reference's
// own operations: z is equal to the reference's bit for bit, and no tanh is computed here.
#include <omp.h>

#include <cmath>

#include "gemm.h"
#include "quantize.h"

constexpr int64_t BLOCK = 128;  // ids whose mass is remembered as one number, for the sample

extern "C" {

// logits [n, width] bfloat16, table [65536] float32, first: id of column 0.
// Running statistics, updated: peak [n], argmax [n], total [n] = Σ e^(z-peak), energy [n] = Σ e^(z-peak)(z-peak).
// Written: mass [n, blocks] = log Σ e^z over every 128 ids, this tile's from its block on; factor [n] = what earlier
// weights must be multiplied by; weights [n, width] bfloat16 = e^(z-peak) · column[id], where wanted.
// column [width], or null for 1: the scales of an embedding in int8. scratch: [threads, width + 16] float32.
void scumble_vocab_tile(const bf16* logits, const float* table, int64_t n, int64_t width, int64_t first, int64_t blocks,
                        float* peak, int64_t* argmax, double* total, double* energy, double* mass, float* factor,
                        bf16* weights, const float* column, float* scratch, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < n; row++) {
    float* z = scratch + omp_get_thread_num() * (width + 16);
    const bf16* in = logits + row * width;
    const __m512 lowest = _mm512_set1_ps(-INFINITY);
    __m512 high = lowest;
    for (int64_t i = 0; i < width; i += 16) {
      __mmask16 m = tail_mask(width - i);
      __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, in + i));
      __m512 v = _mm512_mask_blend_ps(m, lowest, _mm512_i32gather_ps(bits, table, 4));
      _mm512_mask_storeu_ps(z + i, m, v);
      high = _mm512_max_ps(high, v);
    }
    float top = _mm512_reduce_max_ps(high), old = peak[row];
    if (top > old) {
      const __m512 wanted = _mm512_set1_ps(top);
      for (int64_t i = 0; i < width; i += 16) {
        __mmask16 hit = _mm512_mask_cmpeq_ps_mask(tail_mask(width - i), _mm512_loadu_ps(z + i), wanted);
        if (hit) {
          argmax[row] = first + i + __builtin_ctz(hit);
          break;
        }
      }
      peak[row] = top;
    } else {
      top = old;
    }
    const __m512 base = _mm512_set1_ps(top);
    __m512d terms = _mm512_setzero_pd();
    double here = 0;
    for (int64_t from = 0; from < width; from += BLOCK) {
      __m512d sum = _mm512_setzero_pd();
      for (int64_t i = from; i < from + BLOCK && i < width; i += 16) {
        __mmask16 m = tail_mask(width - i);
        __m512 shifted = _mm512_sub_ps(_mm512_maskz_loadu_ps(m, z + i), base);
        __m512 w = _mm512_maskz_mov_ps(m, exp16(shifted));
        __m512 t = _mm512_maskz_mul_ps(m, w, shifted);
        sum = _mm512_add_pd(sum, _mm512_cvtps_pd(_mm512_castps512_ps256(w)));
        sum = _mm512_add_pd(sum, _mm512_cvtps_pd(_mm512_extractf32x8_ps(w, 1)));
        terms = _mm512_add_pd(terms, _mm512_cvtps_pd(_mm512_castps512_ps256(t)));
        terms = _mm512_add_pd(terms, _mm512_cvtps_pd(_mm512_extractf32x8_ps(t, 1)));
        if (weights && column) w = _mm512_mul_ps(w, _mm512_maskz_loadu_ps(m, column + i));
        if (weights) store(weights + row * width + i, m, w);
      }
      double own = _mm512_reduce_add_pd(sum);
      here += own;
      mass[row * blocks + (first + from) / BLOCK] = std::log(own) + top;
    }
    double drop = total[row] > 0 ? (double)old - (double)top : 0.0, shrink = std::exp(drop);
    energy[row] = shrink * (energy[row] + drop * total[row]) + _mm512_reduce_add_pd(terms);
    total[row] = shrink * total[row] + here;
    factor[row] = (float)shrink;
  }
}

// The id of each row inside the block that its uniform fell into: hidden [n, d], embedding [vocab, d], block [n],
// share [n] in [0, 1] of the block's mass -> sample [n], the first id whose cumulative weight exceeds the share.
// panels not null: the head is in int8, packed as for linear layers, and q [n, d], q_scale [n] are the hidden states.
void scumble_vocab_sample(const bf16* hidden, const bf16* embedding, const float* table, const int64_t* block,
                          const double* share, const uint8_t* q, const float* q_scale, const int32_t* panels,
                          const int32_t* shift, const float* scale, int64_t* sample, int64_t n, int64_t d,
                          int64_t vocab, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < n; row++) {
    int64_t first = block[row] * BLOCK, width = vocab - first < BLOCK ? vocab - first : BLOCK, last = 0;
    float z[BLOCK], top = -INFINITY;
    bf16 logits[BLOCK];
    double weights[BLOCK], total = 0, sum = 0;
    if (panels == nullptr) few_rows(1, hidden + row * d, d, embedding + first * d, width, d, z, BLOCK);
    for (int64_t i = 0; panels && i < width; i += PANEL) {
      int32_t t[PANEL];
      int64_t at = first + i;
      times_panel<Int8>(1, (const int32_t*)(q + row * d), d / 4, panels + at * (d / 4), d / 4, t);
      for (int j = 0; j < PANEL; j += 16)
        _mm512_storeu_ps(z + i + j, dequantized(t + j, shift + at + j, scale + at + j, _mm512_set1_ps(q_scale[row])));
    }
    for (int64_t i = 0; i < width; i += 16) store(logits + i, tail_mask(width - i), _mm512_loadu_ps(z + i));
    for (int64_t i = 0; i < width; i++) {
      z[i] = table[logits[i]];
      top = z[i] > top ? z[i] : top;
    }
    for (int64_t i = 0; i < width; i++) total += weights[i] = std::exp((double)z[i] - top);
    for (int64_t i = 0; i < width; i++) {
      if (weights[i] <= 0) continue;
      last = i;
      if ((sum += weights[i]) > share[row] * total) break;
    }
    sample[row] = first + last;
  }
}
}
