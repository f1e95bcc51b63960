// What mixed-precision training does between its matrix products, forward and backward, one row in cache at a time:
// norms, rotary positions, gates, the way to the experts and back, and the loss behind the head.
//
// Activations are bfloat16 or float32, weights and statistics float32. Gradients of weights are summed a thread's rows
// at a time and then in the threads' order, so that a number of threads always gives the same bits.
#include <omp.h>

#include <vector>

#include "guard.h"
#include "row.h"

template <class X>
static inline Floats weighted(const X* x, const float* weight, int64_t i, Mask m) {
  Floats v = load(x + i, m);
  return weight ? mul(v, load(weight + i, m)) : v;
}

// Sums [threads][d] of what `add` puts in for every row, in a fixed order -> out [d]; out may be null.
template <class Row>
static int by_row(int64_t n, int64_t d, float* out, int threads, Row row_of) {
  std::vector<float> sums;
  Guard guard;
  guard([&] { sums.resize(out ? (size_t)threads * d : 0, 0.0f); });
  if (guard.result()) return guard.result();
#pragma omp parallel num_threads(threads)
  {
    float* own = out ? sums.data() + (size_t)omp_get_thread_num() * d : nullptr;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < n; row++) guard([&] { row_of(row, own); });
  }
  if (out)
    for (int64_t i = 0; i < d; i++) {
      float sum = 0.0f;
      for (int t = 0; t < threads; t++) sum += sums[(size_t)t * d + i];
      out[i] = sum;
    }
  return guard.result();
}

template <class X, class O>
static void norm(const X* x, const float* weight, O* out, float* inverse, int64_t n, int64_t d, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < n; row++) {
    float r = inverse[row] = inverse_rms(x + row * d, d, eps);
    for (int64_t i = 0; i < d; i += 16) {
      Mask m = tail_mask(d - i);
      store(out + row * d + i, m, mul(weighted(x + row * d, weight, i, m), floats(r)));
    }
  }
}

// One row: y = x · r · w, r = (mean x² + eps)^-½. dx = r · (g·w - x · r² · mean(g·w·x)), dw += g · x · r.
template <class G, class X, class D>
static inline void norm_back_row(const G* g, const X* x, const float* weight, float r, D* dx, float* dw, int64_t d) {
  Floats dot = floats(0), rs = floats(r);
  for (int64_t i = 0; i < d; i += 16) {
    Mask m = tail_mask(d - i);
    Floats gv = load(g + i, m), xv = load(x + i, m);
    if (dw) store(dw + i, m, fmadd(mul(gv, xv), rs, load(dw + i, m)));
    dot = fmadd(weight ? mul(gv, load(weight + i, m)) : gv, xv, dot);
  }
  Floats along = floats(reduce_add(dot) / (float)d * r * r);
  for (int64_t i = 0; i < d; i += 16) {
    Mask m = tail_mask(d - i);
    Floats v = fnmadd(load(x + i, m), along, weighted(g, weight, i, m));
    store(dx + i, m, mul(v, rs));
  }
}

template <class G, class X>
static int norm_back(const G* g, const X* x, const float* weight, const float* inverse, X* dx, float* dw, int64_t n,
                     int64_t d, int threads) {
  return by_row(n, d, dw, threads, [&](int64_t row, float* own) {
    norm_back_row(g + row * d, x + row * d, weight, inverse[row], dx + row * d, own, d);
  });
}

extern "C" {

// out = norm(x) · weight, x and out float32 where their flag says so, else bfloat16. inverse [n] is kept for the way back.
void scumble_train_norm(const void* x, const float* weight, void* out, float* inverse, int64_t n, int64_t d,
                        int64_t wide_x, int64_t wide_out, float eps, int threads) {
  if (wide_x && wide_out) return norm((const float*)x, weight, (float*)out, inverse, n, d, eps, threads);
  if (wide_x) return norm((const float*)x, weight, (bf16*)out, inverse, n, d, eps, threads);
  if (wide_out) return norm((const bf16*)x, weight, (float*)out, inverse, n, d, eps, threads);
  norm((const bf16*)x, weight, (bf16*)out, inverse, n, d, eps, threads);
}

int scumble_train_norm_back(const void* g, const void* x, const float* weight, const float* inverse, void* dx,
                            float* dw, int64_t n, int64_t d, int64_t wide_x, int64_t wide_out, int threads) {
  const bf16 *gn = (const bf16*)g, *xn = (const bf16*)x;
  const float *gw = (const float*)g, *xw = (const float*)x;
  if (wide_x && wide_out) return norm_back(gw, xw, weight, inverse, (float*)dx, dw, n, d, threads);
  if (wide_x) return norm_back(gn, xw, weight, inverse, (float*)dx, dw, n, d, threads);
  if (wide_out) return norm_back(gw, xn, weight, inverse, (bf16*)dx, dw, n, d, threads);
  return norm_back(gn, xn, weight, inverse, (bf16*)dx, dw, n, d, threads);
}

// out = (x + norm(y) · weight) · scale[row]; x, out float32, y bfloat16; scale may be null.
void scumble_train_add_norm(const float* x, const bf16* y, const float* weight, const float* scale, float* out,
                            float* inverse, int64_t n, int64_t d, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < n; row++) {
    float r = inverse[row] = inverse_rms(y + row * d, d, eps);
    Floats rs = floats(r), s = floats(scale ? scale[row] : 1.0f);
    for (int64_t i = 0; i < d; i += 16) {
      Mask m = tail_mask(d - i);
      Floats v = fmadd(weighted(y + row * d, weight, i, m), rs, load(x + row * d + i, m));
      store(out + row * d + i, m, mul(v, s));
    }
  }
}

// dx = g · scale; dy, dw as of the norm.
int scumble_train_add_norm_back(const float* g, const bf16* y, const float* weight, const float* scale,
                                const float* inverse, float* dx, bf16* dy, float* dw, int64_t n, int64_t d,
                                int threads) {
  return by_row(n, d, dw, threads, [&](int64_t row, float* own) {
    Floats s = floats(scale ? scale[row] : 1.0f);
    for (int64_t i = 0; i < d; i += 16) {
      Mask m = tail_mask(d - i);
      store(dx + row * d + i, m, mul(load(g + row * d + i, m), s));
    }
    norm_back_row(dx + row * d, y + row * d, weight, inverse[row], dy + row * d, own, d);
  });
}

// RMSNorm over each head of x [n, heads, k], then rotary positions ("rotate half"); cos, sin [n, k] float32.
void scumble_train_norm_rope(const bf16* x, const float* weight, const float* cos, const float* sin, bf16* out,
                             float* inverse, int64_t n, int64_t heads, int64_t k, float eps, int threads) {
  int64_t half = k / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < n; row++)
    for (int64_t head = 0; head < heads; head++) {
      const bf16* in = x + (row * heads + head) * k;
      bf16* to = out + (row * heads + head) * k;
      float r = inverse[row * heads + head] = inverse_rms(in, k, eps);
      for (int64_t i = 0; i < half; i += 16) {
        Mask m = tail_mask(half - i);
        Floats a = mul(weighted(in, weight, i, m), floats(r));
        Floats b = mul(weighted(in, weight, half + i, m), floats(r));
        Floats c = load(cos + row * k + i, m), s = load(sin + row * k + i, m);
        store(to + i, m, fmsub(a, c, mul(b, s)));
        store(to + half + i, m, fmadd(b, c, mul(a, s)));
      }
    }
}

int scumble_train_norm_rope_back(const bf16* g, const bf16* x, const float* weight, const float* cos, const float* sin,
                                 const float* inverse, bf16* dx, float* dw, int64_t n, int64_t heads, int64_t k,
                                 int threads) {
  int64_t half = k / 2;
  return by_row(n, k, dw, threads, [&](int64_t row, float* own) {
    std::vector<float> turned(k);
    for (int64_t head = 0; head < heads; head++) {
      int64_t at = (row * heads + head) * k;
      for (int64_t i = 0; i < half; i += 16) {
        Mask m = tail_mask(half - i);
        Floats first = load(g + at + i, m), second = load(g + at + half + i, m);
        Floats c = load(cos + row * k + i, m), s = load(sin + row * k + i, m);
        store(turned.data() + i, m, fmadd(first, c, mul(second, s)));
        store(turned.data() + half + i, m, fmsub(second, c, mul(first, s)));
      }
      norm_back_row(turned.data(), x + at, weight, inverse[row * heads + head], dx + at, own, k);
    }
  });
}

// out [n, f] = gelu(gate) · up, whose rows lie `stride` numbers apart.
void scumble_train_geglu(const bf16* gate, const bf16* up, bf16* out, int64_t n, int64_t f, int64_t stride,
                         int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < n; row++)
    for (int64_t i = 0; i < f; i += 16) {
      Mask m = tail_mask(f - i);
      Floats v = mul(gelu16(load(gate + row * stride + i, m)), load(up + row * stride + i, m));
      store(out + row * f + i, m, v);
    }
}

// gelu(x) = x · σ(2u), u = √(2/π)(x + 0.044715 x³); gelu' = σ + x · σ(1 - σ) · 2u'. Rows of dgate, dup lie as gate, up.
void scumble_train_geglu_back(const bf16* g, const bf16* gate, const bf16* up, bf16* dgate, bf16* dup, int64_t n,
                              int64_t f, int64_t stride, int threads) {
  const Floats one = floats(1.0f);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < n; row++)
    for (int64_t i = 0; i < f; i += 16) {
      Mask m = tail_mask(f - i);
      int64_t at = row * stride + i;
      Floats x = load(gate + at, m), gv = load(g + row * f + i, m), square = mul(x, x);
      Floats inner = fmadd(square, floats(0.044715f), one);
      Floats minus = mul(mul(x, inner), floats(-1.59576912f));  // -2u
      Floats share = div(one, add(one, exp16(min(minus, floats(88.0f)))));
      Floats slope = mul(fmadd(square, floats(0.134145f), one), floats(1.59576912f));
      Floats bend = mul(mul(x, slope), mul(share, sub(one, share)));
      store(dgate + at, m, mul(mul(gv, load(up + at, m)), add(share, bend)));
      store(dup + at, m, mul(gv, mul(x, share)));
    }
}

// chosen [slots]: the expert of every slot (a token's choice). Each expert's slots get a run of places that begins and
// ends at a multiple of `align`; starts [experts + 1] says where. place [slots]: in the order of the slots.
int scumble_train_route(const int64_t* chosen, int64_t slots, int64_t experts, int64_t align, int64_t* starts,
                        int64_t* place) {
  std::vector<int64_t> next;
  Guard guard;
  guard([&] { next.resize(experts + 1, 0); });
  if (guard.result()) return guard.result();
  for (int64_t i = 0; i < slots; i++) next[chosen[i] + 1]++;
  starts[0] = 0;
  for (int64_t e = 0; e < experts; e++) starts[e + 1] = starts[e] + (next[e + 1] + align - 1) / align * align;
  for (int64_t e = 0; e < experts; e++) next[e] = starts[e];
  for (int64_t i = 0; i < slots; i++) place[i] = next[chosen[i]]++;
  return 0;
}

// Every token's row, to each of its k places. weights [n, k] float32 or null (1): what the row is multiplied with.
void scumble_train_scatter(const bf16* x, const float* weights, const int64_t* place, bf16* out, int64_t n, int64_t k,
                           int64_t d, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t slot = 0; slot < n * k; slot++) {
    const bf16* from = x + slot / k * d;
    bf16* to = out + place[slot] * d;
    if (!weights) {
      std::memcpy(to, from, d * sizeof(bf16));
      continue;
    }
    Floats w = floats(weights[slot]);
    for (int64_t i = 0; i < d; i += 16) {
      Mask m = tail_mask(d - i);
      store(to + i, m, mul(load(from + i, m), w));
    }
  }
}

// out[token] = sum over its k places of weight · row. weights [n, k] float32 or null (1).
void scumble_train_gather(const bf16* y, const float* weights, const int64_t* place, bf16* out, int64_t n, int64_t k,
                          int64_t d, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < n; row++)
    for (int64_t i = 0; i < d; i += 16) {
      Mask m = tail_mask(d - i);
      Floats sum = floats(0);
      for (int64_t j = row * k; j < (row + 1) * k; j++)
        sum = fmadd(load(y + place[j] * d + i, m), floats(weights ? weights[j] : 1.0f), sum);
      store(out + row * d + i, m, sum);
    }
}

// out [n, k] float32: each token's gradient times the row at each of its places.
void scumble_train_gather_dots(const bf16* g, const bf16* y, const int64_t* place, float* out, int64_t n, int64_t k,
                               int64_t d, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t slot = 0; slot < n * k; slot++) {
    const bf16 *a = g + slot / k * d, *b = y + place[slot] * d;
    Floats sum = floats(0);
    for (int64_t i = 0; i < d; i += 16) {
      Mask m = tail_mask(d - i);
      sum = fmadd(load(a + i, m), load(b + i, m), sum);
    }
    out[slot] = reduce_add(sum);
  }
}

// Cross entropy behind the soft-cap, and its gradient: logits [n, v] before the cap are replaced by
// weight · (softmax - one at the target) · (1 - tanh²), losses [n] are not weighted. cap ≤ 60: e^cap times v is a number, so
// no maximum is looked for. room: [threads][v] floats. A row of weight 0 becomes zeros.
void scumble_train_cross_entropy(bf16* logits, const int64_t* targets, const float* weights, float* losses, float* room,
                                 int64_t n, int64_t v, float cap, int threads) {
  const Floats one = floats(1.0f), two = floats(2.0f), caps = floats(cap);
  const Floats twice = floats(2.0f / cap);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < n; row++) {
    bf16* z = logits + row * v;
    if (weights[row] == 0.0f) {
      std::memset(z, 0, v * sizeof(bf16));
      losses[row] = 0.0f;
      continue;
    }
    float* mass = room + (int64_t)omp_get_thread_num() * v;
    Floats sum = floats(0);
    auto squashed = [&](int64_t i, Mask m) {  // tanh(y) = 1 - 2 / (e^2y + 1)
      Floats e = exp16(min(mul(load(z + i, m), twice), floats(88.0f)));
      return sub(one, div(two, add(e, one)));
    };
    for (int64_t i = 0; i < v; i += 16) {
      Mask m = tail_mask(v - i);
      Floats e = keep(m, exp16(mul(squashed(i, m), caps)));
      store(mass + i, m, e);
      sum = add(sum, e);
    }
    float total = reduce_add(sum), own = mass[targets[row]];
    losses[row] = std::log(total) - std::log(own);
    mass[targets[row]] = own - total;
    Floats share = floats(weights[row] / total);
    for (int64_t i = 0; i < v; i += 16) {
      Mask m = tail_mask(v - i);
      Floats t = squashed(i, m);
      store(z + i, m, mul(mul(load(mass + i, m), share), fnmadd(t, t, one)));
    }
  }
}
}
