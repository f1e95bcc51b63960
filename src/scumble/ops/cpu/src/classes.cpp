// Draws of ids out of classes (ops/classes.py), after the sweep that classes.h is part of.
#include <omp.h>

#include <algorithm>

#include "classes.h"
#include "vocab.h"

namespace {

// Inverse CDF over weights(0 … count - 1): the index; `uniform` becomes its place inside that weight, in [0, 1).
template <class Weight>
int64_t choose(int64_t count, double* uniform, Weight weight) {
  double total = 0, running = 0, before = 0, own = 1;
  for (int64_t i = 0; i < count; i++) total += weight(i);
  const double target = *uniform * total;
  int64_t last = 0;  // rounding may leave none beyond the target: then the last with any weight
  for (int64_t i = 0; i < count; i++) {
    const double w = weight(i);
    if (!(w > 0)) continue;
    last = i, before = running, own = w;
    running += w;
    if (running > target) break;
  }
  *uniform = std::min(std::max((target - before) / own, 0.0), std::nextafter(1.0, 0.0));
  return last;
}
}  // namespace

extern "C" {

// One id for each of k draws: out of class chosen [k] at row rows [k] (counted from begin), with uniforms [k]. tiles
// [number of tiles]: what the sweep was called with; place [count, number]: the run that a class has in a tile, or -1.
// width: ids of a tile. Written: ids [k], where chosen is not 0.
void scumble_class_draw(const VocabHead* head, const VocabState* s, const ClassTile* tiles, const int32_t* place,
                        const int64_t* rows, const int64_t* chosen, const double* uniforms, int64_t* ids, int64_t k,
                        int64_t number, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (k > 1)
  for (int64_t d = 0; d < k; d++) {
    if (!chosen[d]) continue;
    const int64_t row = rows[d], packed = row + tiles[0].begin;
    const int32_t* run_of = place + chosen[d] * number;
    const float *tops = tiles[0].tops + row * tiles[0].all_runs, *sums = tiles[0].sums + row * tiles[0].all_runs;
    double left = uniforms[d], most = -INFINITY;
    for (int64_t t = 0; t < number; t++)
      if (run_of[t] >= 0) most = std::max(most, (double)tops[tiles[t].from + run_of[t]]);
    const int64_t at = choose(number, &left, [&](int64_t t) {
      if (run_of[t] < 0) return 0.0;
      const int64_t run = tiles[t].from + run_of[t];
      return sums[run] > 0 ? sums[run] * std::exp(tops[run] - most) : 0.0;
    });
    const ClassTile& tile = tiles[at];
    const int64_t begin = tile.begins[run_of[at]], end = tile.begins[run_of[at] + 1], first = at * width;
    bf16 logits[PANEL];
    float z[PANEL];
    int64_t held = -1;  // the panel whose z these are
    float* own = s->scratch + omp_get_thread_num() * s->room;
    for (int64_t i = begin; i < end; i++) {  // ids ascend, so every panel comes once
      const int64_t column = tile.order[i], panel = (first + column) / PANEL * PANEL;
      if (panel != held) {
        held = panel;
        const int64_t inside = std::min<int64_t>(PANEL, s->vocab - panel);
        head->logits(packed, panel, logits);
        capped_row(logits, s->table, s->heat[packed], s->allowed_of(packed, panel), inside, z);
      }
      own[i - begin] = z[first + column - panel];
    }
    const double top = tops[tile.from + run_of[at]];
    ids[d] = first + tile.order[begin + choose(end - begin, &left, [&](int64_t i) { return std::exp(own[i] - top); })];
  }
}

int64_t scumble_class_tile_size() { return sizeof(ClassTile); }
}
