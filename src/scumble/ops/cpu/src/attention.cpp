// Grouped-query attention of many queries: scores, softmax and the mix of values for six query rows at a time, all in
// cache, scores in float32. Keys and values are packed once a call into the panels of gemm.h.
#include <omp.h>

#include <vector>

#include "pack.h"
#include "row.h"

extern "C" {

// queries and out [n, heads, k]; keys, values: `groups` runs of `seen` rows [k], `stride` numbers apart.
// window 0: every query sees all keys. Otherwise causal: query i, the (seen - n + i)-th token, sees itself and the
// window - 1 tokens before it. room: dwords for groups · (panels of keys + panels of values), see below.
void scumble_attention(const bf16* queries, const bf16* keys, const bf16* values, bf16* out, int32_t* room, int64_t n,
                       int64_t heads, int64_t groups, int64_t k, int64_t seen, int64_t stride, int64_t window,
                       int threads) {
  int64_t share = heads / groups, rows = n * share, padded = (seen + PANEL - 1) / PANEL * PANEL, half = (seen + 1) / 2;
  int64_t key_size = padded * (k / 2), value_size = (k + PANEL - 1) / PANEL * PANEL * half;
  int64_t chunks = (rows + 8 * ROWS - 1) / (8 * ROWS);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for
    for (int64_t g = 0; g < groups; g++) {
      int32_t *packed_keys = room + g * (key_size + value_size), *packed_values = packed_keys + key_size;
      pack_rows(keys + g * stride, seen, k, packed_keys);
      pack_pairs(values + g * stride, seen, k, packed_values);
    }
    std::vector<float> scores(ROWS * padded);
    std::vector<bf16> weights(ROWS * padded), some(ROWS * k);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < groups * chunks; task++) {
      int64_t g = task / chunks, first = task % chunks * 8 * ROWS;
      int64_t end = first + 8 * ROWS < rows ? first + 8 * ROWS : rows;
      const int32_t *packed_keys = room + g * (key_size + value_size), *packed_values = packed_keys + key_size;
      for (int64_t r = first; r < end; r += ROWS) {
        int count = end - r < ROWS ? (int)(end - r) : ROWS;
        int64_t place[ROWS], from[ROWS], to[ROWS], lowest = seen, highest = 0;
        float total[ROWS], t[ROWS * PANEL];
        for (int i = 0; i < count; i++) {
          int64_t token = (r + i) / share;
          place[i] = (token * heads + g * share + (r + i) % share) * k;
          std::memcpy(some.data() + i * k, queries + place[i], k * sizeof(bf16));
          to[i] = window ? seen - n + token + 1 : seen;
          from[i] = window && to[i] > window ? to[i] - window : 0;
          lowest = from[i] < lowest ? from[i] : lowest;
          highest = to[i] > highest ? to[i] : highest;
        }
        for (int64_t s = lowest / PANEL * PANEL; s < highest; s += PANEL) {
          times_panel<Bf16>(count, (const int32_t*)some.data(), k / 2, packed_keys + s * (k / 2), k / 2, t);
          for (int i = 0; i < count; i++) std::memcpy(scores.data() + i * padded + s, t + i * PANEL, sizeof(t) / ROWS);
        }
        for (int i = 0; i < count; i++) {  // weights are 0 where a query sees nothing
          bf16* row = weights.data() + i * padded;
          std::memset(row, 0, from[i] * sizeof(bf16));
          std::memset(row + to[i], 0, (padded - to[i]) * sizeof(bf16));
          total[i] = exp_row(scores.data() + i * padded, from[i], to[i], row);
        }
        int64_t low = lowest / 2, steps = (highest + 1) / 2 - low;  // pairs of keys with any weight
        for (int64_t c = 0; c < k; c += PANEL) {
          times_panel<Bf16>(count, (const int32_t*)weights.data() + low, padded / 2,
                            packed_values + c * half + low * PANEL, steps, t);
          for (int i = 0; i < count; i++)
            for (int64_t j = 0; j < PANEL && c + j < k; j += 16)
              store(out + place[i] + c + j, tail_mask(k - c - j),
                    _mm512_div_ps(_mm512_loadu_ps(t + i * PANEL + j), _mm512_set1_ps(total[i])));
        }
      }
    }
  }
}

// The same for few queries, as in an autoregressive step: straight from keys and values as they lie, which are read once
// a query head. Arguments as above; window as above; room: float32 [threads, seen].
void scumble_attention_few(const bf16* queries, const bf16* keys, const bf16* values, bf16* out, float* room, int64_t n,
                           int64_t heads, int64_t groups, int64_t k, int64_t seen, int64_t stride, int64_t window,
                           int threads) {
#pragma omp parallel for num_threads(threads) if (n * heads * k * seen > 262144)
  for (int64_t task = 0; task < n * heads; task++) {
    int64_t token = task / heads, g = task % heads / (heads / groups);
    const bf16 *own_keys = keys + g * stride, *own_values = values + g * stride;
    int64_t to = window ? seen - n + token + 1 : seen, from = window && to > window ? to - window : 0;
    float* weights = room + omp_get_thread_num() * seen;
    few_rows(1, queries + task * k, k, own_keys + from * k, to - from, k, weights + from, seen);
    __m512 total = _mm512_set1_ps(exp_row(weights, from, to, weights));
    for (int64_t c = 0; c < k; c += 64) {
      __m512 mix[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
      __mmask16 m[4];
      for (int j = 0; j < 4; j++) m[j] = k - c > 16 * j ? tail_mask(k - c - 16 * j) : 0;
      for (int64_t s = from; s < to; s++) {
        __m512 w = _mm512_set1_ps(weights[s]);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) mix[j] = _mm512_fmadd_ps(w, load(own_values + s * k + c + 16 * j, m[j]), mix[j]);
      }
      for (int j = 0; j < 4; j++) store(out + task * k + c + 16 * j, m[j], _mm512_div_ps(mix[j], total));
    }
  }
}
}
