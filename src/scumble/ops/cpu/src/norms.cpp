// RMSNorm and what stands around it in a layer, one row in cache at a time. Rounds to bfloat16 where the torch
// reference does, so results differ from it only by the order of the sum of squares.
#include "row.h"

static inline Floats scaled(const bf16* x, const bf16* weight, int64_t i, Mask m, Floats inverse) {
  Floats v = mul(load(x + i, m), inverse);
  return weight ? mul(v, load(weight + i, m)) : v;
}

extern "C" {

// out[n, d] = norm(x[n, d]) · weight[d] (or without weight). Rows of x lie `stride` numbers apart.
void scumble_rms_norm(const bf16* x, const bf16* weight, bf16* out, int64_t n, int64_t d, int64_t stride, float eps,
                      int threads) {
#pragma omp parallel for num_threads(threads) if (n * d > 65536)
  for (int64_t row = 0; row < n; row++) {
    const bf16* in = x + row * stride;
    Floats inverse = floats(inverse_rms(in, d, eps));
    for (int64_t i = 0; i < d; i += 16) {
      Mask m = tail_mask(d - i);
      store(out + row * d + i, m, scaled(in, weight, i, m, inverse));
    }
  }
}

// h = x + norm(y) · weight; then first = norm(h) · w1 and second = norm(h) · w2, which share one sum of squares.
void scumble_attention_tail(const bf16* x, const bf16* y, const bf16* weight, const bf16* w1, const bf16* w2, bf16* h,
                            bf16* first, bf16* second, int64_t n, int64_t d, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (n * d > 65536)
  for (int64_t row = 0; row < n; row++) {
    int64_t at = row * d;
    Floats inverse = floats(inverse_rms(y + at, d, eps));
    for (int64_t i = 0; i < d; i += 16) {
      Mask m = tail_mask(d - i);
      store(h + at + i, m, add(load(x + at + i, m), rounded(scaled(y + at, weight, i, m, inverse))));
    }
    inverse = floats(inverse_rms(h + at, d, eps));
    for (int64_t i = 0; i < d; i += 16) {
      Mask m = tail_mask(d - i);
      store(first + at + i, m, scaled(h + at, w1, i, m, inverse));
      store(second + at + i, m, scaled(h + at, w2, i, m, inverse));
    }
  }
}

// out = (h + norm(norm(dense) · w1 + norm(mixed) · w2) · w3) · scalar, scalar [n]: denoise[row] ? scalar[0] : scalar[1].
void scumble_layer_tail(const bf16* h, const bf16* dense, const bf16* mixed, const bf16* w1, const bf16* w2,
                        const bf16* w3, const uint8_t* denoise, const bf16* denoise_scalar, const bf16* encode_scalar,
                        bf16* out, int64_t n, int64_t d, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (n * d > 65536)
  for (int64_t row = 0; row < n; row++) {
    int64_t at = row * d;
    Floats first = floats(inverse_rms(dense + at, d, eps));
    Floats second = floats(inverse_rms(mixed + at, d, eps));
    for (int64_t i = 0; i < d; i += 16) {  // out holds the sum for a while
      Mask m = tail_mask(d - i);
      Floats a = rounded(scaled(dense + at, w1, i, m, first)), b = rounded(scaled(mixed + at, w2, i, m, second));
      store(out + at + i, m, add(a, b));
    }
    Floats inverse = floats(inverse_rms(out + at, d, eps));
    Floats scalar = floats(to_float(denoise[row] ? *denoise_scalar : *encode_scalar));
    for (int64_t i = 0; i < d; i += 16) {
      Mask m = tail_mask(d - i);
      Floats sum = rounded(add(load(h + at + i, m), rounded(scaled(out + at, w3, i, m, inverse))));
      store(out + at + i, m, mul(sum, scalar));
    }
  }
}

// RMSNorm over each head, then rotary positions ("rotate half"): x [n, heads, k] -> out, same shape, k even.
// cos, sin [n, k] hold the same numbers in both halves.
void scumble_norm_rope(const bf16* x, const bf16* weight, const bf16* cos, const bf16* sin, bf16* out, int64_t n,
                       int64_t heads, int64_t k, float eps, int threads) {
  int64_t half = k / 2;
#pragma omp parallel for num_threads(threads) if (n * heads * k > 65536)
  for (int64_t row = 0; row < n; row++) {
    for (int64_t head = 0; head < heads; head++) {
      const bf16* in = x + (row * heads + head) * k;
      bf16* to = out + (row * heads + head) * k;
      Floats inverse = floats(inverse_rms(in, k, eps));
      for (int64_t i = 0; i < half; i += 16) {
        Mask m = tail_mask(half - i);
        Floats a = rounded(scaled(in, weight, i, m, inverse));
        Floats b = rounded(scaled(in, weight, half + i, m, inverse));
        Floats c = load(cos + row * k + i, m), s = load(sin + row * k + i, m);
        Floats first = sub(rounded(mul(a, c)), rounded(mul(b, s)));
        Floats second = add(rounded(mul(b, c)), rounded(mul(a, s)));
        store(to + i, m, first);
        store(to + half + i, m, second);
      }
    }
  }
}

// out = gelu(gate) · up over `count` numbers.
void scumble_geglu(const bf16* gate, const bf16* up, bf16* out, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) if (count > 65536)
  for (int64_t i = 0; i < count; i += 16) {
    Mask m = tail_mask(count - i);
    store(out + i, m, mul(rounded(gelu16(load(gate + i, m))), load(up + i, m)));
  }
}
}
