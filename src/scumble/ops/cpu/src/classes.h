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
  const Floats zero = floats(0), lowest = floats(-INFINITY);
  for (int64_t i = 0; i < kept; i += 16) {
    const Mask m = tail_mask(kept - i);
    store(own + i, gather(z, m, load(c.order + i, m)));
  }
  for (int64_t r = 0; r < runs; r++) {
    const int64_t begin = c.begins[r], end = c.begins[r + 1];
    if (end - begin == 1) {
      top[r] = own[begin], sum[r] = own[begin] > -INFINITY, terms[r] = 0;
      continue;
    }
    Floats high = lowest;
    for (int64_t i = begin; i < end; i += 16)
      high = max_where(tail_mask(end - i), high, load(own + i));
    const float best = reduce_max(high);
    const Floats base = floats(best > -INFINITY ? best : 0.0f);  // nothing allowed: e^-inf = 0
    Floats mass = zero, work = zero;
    for (int64_t i = begin; i < end; i += 16) {
      const Mask m = tail_mask(end - i);
      const Floats shifted = sub(load(own + i, m), base);
      const Floats w = keep(m, exp16(shifted));
      const Mask some = differ(m, w, zero);
      mass = add(mass, w);
      work = fmadd_where(some, w, shifted, work);
    }
    top[r] = best, sum[r] = reduce_add(mass), terms[r] = reduce_add(work);
  }
  float *p = c.peak + row * c.count, *t = c.total + row * c.count, *e = c.energy + row * c.count;
  int32_t* ids = c.best + row * c.count;
  for (int64_t r = 0; r < runs; r += 16) {
    const Mask m = tail_mask(runs - r);
    const Ints kind = load(c.kinds + r, m);
    const Floats here = load(top + r, m), mass = load(sum + r, m);
    const Floats old = gather(p, m, kind);
    const Floats before = gather(t, m, kind);
    const Floats earlier = gather(e, m, kind);
    const Floats best = max(here, old);
    // fall, rise ≤ 0: what lies before and here, moved to the new peak; of nothing: 0, for -∞ - best is no number
    const Mask some = differ(m, before, zero);
    const Mask any = differ(m, mass, zero);
    const Floats fall = keep(some, sub(old, best)), rise = keep(any, sub(here, best));
    const Floats shrink = exp16(fall), grow = exp16(rise);
    const Floats left = mul(shrink, before), right = mul(grow, mass);
    Floats both = mul(shrink, earlier);
    both = fmadd(fall, left, both);
    both = fmadd(grow, load(terms + r, m), both);
    both = fmadd(rise, right, both);
    scatter(p, m, kind, best);
    scatter(t, m, kind, add(left, right));
    scatter(e, m, kind, both);
    for (Mask higher = greater(m, here, old); higher; higher &= higher - 1) {
      const int64_t at = r + __builtin_ctz(higher);
      int64_t i = c.begins[at];
      while (own[i] != top[at]) i++;
      ids[c.kinds[at]] = (int32_t)(first + c.order[i]);
    }
  }
}
