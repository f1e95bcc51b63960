// Rows of a batch grouped by the expert that they chose, and their results put together again.
#pragma once
#include <vector>

#include "simd.h"

// Slots (token · k + choice) grouped by expert, in order: slots [n · k], begin [experts + 1].
struct Groups {
  std::vector<int32_t> slots, begin;
  Groups(const int64_t* chosen, int64_t count, int64_t experts) : slots(count), begin(experts + 1) {
    for (int64_t i = 0; i < count; i++) begin[chosen[i] + 1]++;
    for (int64_t e = 0; e < experts; e++) begin[e + 1] += begin[e];
    std::vector<int32_t> next(begin.begin(), begin.end() - 1);
    for (int64_t i = 0; i < count; i++) slots[next[chosen[i]]++] = (int32_t)i;
  }
};

template <class N>
static inline N* room(std::vector<N>& v, int64_t count) {
  if ((int64_t)v.size() < count) v.resize(count);
  return v.data();
}

// out[token] = Σ over its k slots of weight · slot, in the order of the slots.
static inline void combine(const bf16* slots, const float* weights, bf16* out, int64_t n, int64_t k, int64_t d, int threads) {
#pragma omp parallel for num_threads(threads) if (n * d > 65536)
  for (int64_t token = 0; token < n; token++)
    for (int64_t i = 0; i < d; i += 16) {
      Mask m = tail_mask(d - i);
      Floats sum = floats(0);
      for (int64_t j = 0; j < k; j++)
        sum = fmadd(floats(weights[token * k + j]), load(slots + (token * k + j) * d + i, m), sum);
      store(out + token * d + i, m, sum);
    }
}
