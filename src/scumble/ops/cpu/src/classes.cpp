// Statistics of one tile of logits by classes of ids (ops/classes.py), row by row.
//
// The ids of the tile are taken in order of their class, so that each class is one run. Peak, mass and energy of a run
// are relative to its own peak; then all runs are merged into the classes' running statistics, 16 at a time.
#include <omp.h>

#include <cmath>

#include "simd.h"

extern "C" {

// logits [n, width] bfloat16, table [65536] float32: softcap of every bfloat16 number; heat [n]: temperatures.
// order [kept]: columns, by class; begins [runs + 1] in order; kinds [runs]: each run's class, all different.
// Running, updated: peak, total, energy [n, count] float32, tiles [n, count] int32: where the peak was found.
// Written: tops, sums [n, runs]: of every run. scratch: [threads, 4 · width + 64] float32.
void scumble_class_tile(const uint16_t* logits, const float* table, const float* heat, const int32_t* order, const int32_t* begins,
                        const int32_t* kinds, float* peak, float* total, float* energy, int32_t* tiles, float* tops,
                        float* sums, float* scratch, int64_t n, int64_t width, int64_t runs, int64_t count,
                        int64_t number, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < n; row++) {
    float* z = scratch + omp_get_thread_num() * (4 * width + 64);
    float* terms = z + width + 32;
    float *top = tops + row * runs, *sum = sums + row * runs;
    const uint16_t* in = logits + row * width;
    const int64_t kept = begins[runs];
    for (int64_t i = 0; i < kept; i++) z[i] = table[in[order[i]]] / heat[row];
    for (int64_t r = 0; r < runs; r++) {
      const int64_t begin = begins[r], end = begins[r + 1];
      if (end - begin == 1) {
        top[r] = z[begin], sum[r] = 1, terms[r] = 0;
        continue;
      }
      __m512 high = _mm512_set1_ps(-INFINITY);
      for (int64_t i = begin; i < end; i += 16)
        high = _mm512_mask_max_ps(high, tail_mask(end - i), high, _mm512_maskz_loadu_ps(tail_mask(end - i), z + i));
      const float best = _mm512_reduce_max_ps(high);
      __m512 mass = _mm512_setzero_ps(), work = _mm512_setzero_ps();
      for (int64_t i = begin; i < end; i += 16) {
        const __mmask16 m = tail_mask(end - i);
        const __m512 shifted = _mm512_sub_ps(_mm512_maskz_loadu_ps(m, z + i), _mm512_set1_ps(best));
        const __m512 w = _mm512_maskz_mov_ps(m, exp16(shifted));
        mass = _mm512_add_ps(mass, w);
        work = _mm512_add_ps(work, _mm512_maskz_mul_ps(m, w, shifted));
      }
      top[r] = best, sum[r] = _mm512_reduce_add_ps(mass), terms[r] = _mm512_reduce_add_ps(work);
    }
    float *p = peak + row * count, *t = total + row * count, *e = energy + row * count;
    for (int64_t r = 0; r < runs; r += 16) {
      const __mmask16 m = tail_mask(runs - r);
      const __m512i kind = _mm512_maskz_loadu_epi32(m, kinds + r);
      const __m512 here = _mm512_maskz_loadu_ps(m, top + r), zero = _mm512_setzero_ps();
      const __m512 old = _mm512_mask_i32gather_ps(zero, m, kind, p, 4);
      const __m512 before = _mm512_mask_i32gather_ps(zero, m, kind, t, 4);
      const __m512 earlier = _mm512_mask_i32gather_ps(zero, m, kind, e, 4);
      const __mmask16 higher = _mm512_mask_cmp_ps_mask(m, here, old, _CMP_GT_OQ);
      const __m512 best = _mm512_max_ps(here, old);
      // fall, rise ≤ 0: what lies before and here, moved to the new peak; nothing before: 0, for -∞ - best is no number
      const __mmask16 some = _mm512_mask_cmp_ps_mask(m, before, zero, _CMP_GT_OQ);
      const __m512 fall = _mm512_maskz_sub_ps(some, old, best), rise = _mm512_sub_ps(here, best);
      const __m512 shrink = exp16(fall), grow = exp16(rise);
      const __m512 mass = _mm512_maskz_loadu_ps(m, sum + r), work = _mm512_maskz_loadu_ps(m, terms + r);
      const __m512 left = _mm512_mul_ps(shrink, before), right = _mm512_mul_ps(grow, mass);
      __m512 both = _mm512_mul_ps(shrink, earlier);
      both = _mm512_fmadd_ps(fall, left, both);
      both = _mm512_fmadd_ps(grow, work, both);
      both = _mm512_fmadd_ps(rise, right, both);
      _mm512_mask_i32scatter_ps(p, m, kind, best, 4);
      _mm512_mask_i32scatter_ps(t, m, kind, _mm512_add_ps(left, right), 4);
      _mm512_mask_i32scatter_ps(e, m, kind, both, 4);
      _mm512_mask_i32scatter_epi32(tiles + row * count, higher, kind, _mm512_set1_epi32((int)number), 4);
    }
  }
}
}
