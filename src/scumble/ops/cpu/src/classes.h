// Statistics of the vocabulary operator by classes of ids (ops/classes.py): one tile of one row.
//
// The ids of a tile are taken in order of their class, so that each class is one run. Peak, mass and energy of a run are
// relative to its own peak; then all runs are merged into the classes' running statistics, 16 at a time.
#pragma once
#include <cmath>

#include "simd.h"

// What is asked about rows begin … end - 1; the same order as ClassTile in ops/cpu/native.py.
struct ClassTile {
  const int32_t* order;    // [kept] columns of the tile, by class
  const int32_t* begins;   // [runs + 1] in order
  const int32_t* kinds;    // [runs] each run's class, all different
  float *peak, *total, *energy;  // [rows, count] running
  int32_t* best;           // [rows, count] the most probable id
  float *tops, *sums;      // [rows, all_runs] of every run of every tile: its peak, and its mass relative to that
  int64_t runs, count, from, all_runs, begin, end;  // from: the tile's first run among all
};

// z: of the tile's ids; first: id of column 0; row counts from begin. scratch: 2 · ids of the tile + 48.
static inline void class_row(const ClassTile& c, int64_t row, const float* z, int64_t first, float* scratch) {
  const int64_t kept = c.begins[c.runs], runs = c.runs;
  float *own = scratch, *terms = scratch + kept + 16;
  float *top = c.tops + row * c.all_runs + c.from, *sum = c.sums + row * c.all_runs + c.from;
  const __m512 zero = _mm512_setzero_ps(), lowest = _mm512_set1_ps(-INFINITY);
  for (int64_t i = 0; i < kept; i += 16) {
    const __mmask16 m = tail_mask(kept - i);
    _mm512_storeu_ps(own + i, _mm512_mask_i32gather_ps(zero, m, _mm512_maskz_loadu_epi32(m, c.order + i), z, 4));
  }
  for (int64_t r = 0; r < runs; r++) {
    const int64_t begin = c.begins[r], end = c.begins[r + 1];
    if (end - begin == 1) {
      top[r] = own[begin], sum[r] = own[begin] > -INFINITY, terms[r] = 0;
      continue;
    }
    __m512 high = lowest;
    for (int64_t i = begin; i < end; i += 16)
      high = _mm512_mask_max_ps(high, tail_mask(end - i), high, _mm512_loadu_ps(own + i));
    const float best = _mm512_reduce_max_ps(high);
    const __m512 base = _mm512_set1_ps(best > -INFINITY ? best : 0.0f);  // nothing allowed: e^-inf = 0
    __m512 mass = zero, work = zero;
    for (int64_t i = begin; i < end; i += 16) {
      const __mmask16 m = tail_mask(end - i);
      const __m512 shifted = _mm512_sub_ps(_mm512_maskz_loadu_ps(m, own + i), base);
      const __m512 w = _mm512_maskz_mov_ps(m, exp16(shifted));
      const __mmask16 some = _mm512_mask_cmp_ps_mask(m, w, zero, _CMP_NEQ_UQ);
      mass = _mm512_add_ps(mass, w);
      work = _mm512_mask3_fmadd_ps(w, shifted, work, some);
    }
    top[r] = best, sum[r] = _mm512_reduce_add_ps(mass), terms[r] = _mm512_reduce_add_ps(work);
  }
  float *p = c.peak + row * c.count, *t = c.total + row * c.count, *e = c.energy + row * c.count;
  int32_t* ids = c.best + row * c.count;
  for (int64_t r = 0; r < runs; r += 16) {
    const __mmask16 m = tail_mask(runs - r);
    const __m512i kind = _mm512_maskz_loadu_epi32(m, c.kinds + r);
    const __m512 here = _mm512_maskz_loadu_ps(m, top + r), mass = _mm512_maskz_loadu_ps(m, sum + r);
    const __m512 old = _mm512_mask_i32gather_ps(zero, m, kind, p, 4);
    const __m512 before = _mm512_mask_i32gather_ps(zero, m, kind, t, 4);
    const __m512 earlier = _mm512_mask_i32gather_ps(zero, m, kind, e, 4);
    const __m512 best = _mm512_max_ps(here, old);
    // fall, rise ≤ 0: what lies before and here, moved to the new peak; of nothing: 0, for -∞ - best is no number
    const __mmask16 some = _mm512_mask_cmp_ps_mask(m, before, zero, _CMP_NEQ_UQ);
    const __mmask16 any = _mm512_mask_cmp_ps_mask(m, mass, zero, _CMP_NEQ_UQ);
    const __m512 fall = _mm512_maskz_sub_ps(some, old, best), rise = _mm512_maskz_sub_ps(any, here, best);
    const __m512 shrink = exp16(fall), grow = exp16(rise);
    const __m512 left = _mm512_mul_ps(shrink, before), right = _mm512_mul_ps(grow, mass);
    __m512 both = _mm512_mul_ps(shrink, earlier);
    both = _mm512_fmadd_ps(fall, left, both);
    both = _mm512_fmadd_ps(grow, _mm512_maskz_loadu_ps(m, terms + r), both);
    both = _mm512_fmadd_ps(rise, right, both);
    _mm512_mask_i32scatter_ps(p, m, kind, best, 4);
    _mm512_mask_i32scatter_ps(t, m, kind, _mm512_add_ps(left, right), 4);
    _mm512_mask_i32scatter_ps(e, m, kind, both, 4);
    for (__mmask16 higher = _mm512_mask_cmp_ps_mask(m, here, old, _CMP_GT_OQ); higher; higher &= higher - 1) {
      const int64_t at = r + __builtin_ctz(higher);
      int64_t i = c.begins[at];
      while (own[i] != top[at]) i++;
      ids[c.kinds[at]] = (int32_t)(first + c.order[i]);
    }
  }
}
