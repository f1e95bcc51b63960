// The router: norm, scores, softmax, top-k and renormalised weights of a token in one go, in float32.
#include <cmath>

#include "simd.h"

extern "C" {

// h [n, d], scale [d], proj [experts, d], per_expert [experts] bfloat16 -> weights float32 and chosen int64 [n, k].
// scores: room for float32 [n, experts]. Equal probabilities go to the lower expert id.
void scumble_router(const bf16* h, const bf16* scale, const bf16* proj, const bf16* per_expert, float* scores,
                    float* weights, int64_t* chosen, int64_t n, int64_t d, int64_t experts, int64_t k, float eps,
                    int threads) {
  constexpr int64_t TOKENS = 4;
  const float down = 1.0f / std::sqrt((float)d);
#pragma omp parallel for num_threads(threads) if (n * d > 65536)
  for (int64_t first = 0; first < n; first += TOKENS) {
    int64_t tokens = n - first < TOKENS ? n - first : TOKENS;
    float inverse[TOKENS];
    for (int64_t t = 0; t < tokens; t++) {
      Floats sum = floats(0);
      for (int64_t i = 0; i < d; i += 16) {
        Floats v = load(h + (first + t) * d + i, tail_mask(d - i));
        sum = fmadd(v, v, sum);
      }
      inverse[t] = 1.0f / std::sqrt(reduce_add(sum) / (float)d + eps);
    }
    for (int64_t e = 0; e < experts; e++) {
      Floats acc[TOKENS] = {floats(0), floats(0), floats(0), floats(0)};
      for (int64_t i = 0; i < d; i += 16) {
        Mask m = tail_mask(d - i);
        Floats w = mul(load(proj + e * d + i, m), load(scale + i, m));
        for (int64_t t = 0; t < tokens; t++) acc[t] = fmadd(load(h + (first + t) * d + i, m), w, acc[t]);
      }
      for (int64_t t = 0; t < tokens; t++)
        scores[(first + t) * experts + e] = reduce_add(acc[t]) * inverse[t] * down;
    }
    for (int64_t t = 0; t < tokens; t++) {
      float* p = scores + (first + t) * experts;
      float most = p[0], picked = 0;
      for (int64_t e = 1; e < experts; e++) most = p[e] > most ? p[e] : most;
      for (int64_t e = 0; e < experts; e++) p[e] = std::exp(p[e] - most);  // the sum cancels in the renormalisation
      for (int64_t j = 0; j < k; j++) {
        int64_t best = 0;
        for (int64_t e = 1; e < experts; e++) best = p[e] > p[best] ? e : best;
        chosen[(first + t) * k + j] = best;
        weights[(first + t) * k + j] = p[best];
        picked += p[best];
        p[best] = -1.0f;
      }
      for (int64_t j = 0; j < k; j++) {
        int64_t at = (first + t) * k + j;
        weights[at] = weights[at] / picked * to_float(per_expert[chosen[at]]);
      }
    }
  }
}
}
