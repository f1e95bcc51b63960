// Grouped-query attention of a batch of rows in training, forward and backward, without ever holding a batch's scores.
//
// One task is one row's key head with the query heads that share it: its keys and values are packed once into the panels
// of gemm.h, scores and their gradients live in the cache. With P = softmax(Q Kᵀ) and G the gradient of the output:
//   D = Σ P ∘ G Vᵀ;  dS = P ∘ (G Vᵀ - D);  dQ = dS K;  dK = dSᵀ Q;  dV = Pᵀ G.
// Scores, softmax and sums are float32, what products take is bfloat16.
#include <omp.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "guard.h"
#include "pack.h"
#include "row.h"

namespace {

struct Shape {
  int64_t tokens, seen, heads, groups, k, window;  // window 0: all see all
  int64_t share() const { return heads / groups; }
  int64_t padded() const { return (seen + PANEL - 1) / PANEL * PANEL; }
  int64_t half() const { return (seen + 1) / 2; }
  int64_t columns() const { return (k + PANEL - 1) / PANEL * PANEL; }
  int64_t to(int64_t token) const { return window ? seen - tokens + token + 1 : seen; }
  int64_t from(int64_t token) const { return window && to(token) > window ? to(token) - window : 0; }
};

// rows [count][k] that lie `stride` numbers apart -> one behind the other.
void gather(const bf16* from, int64_t count, int64_t k, int64_t stride, bf16* to) {
  for (int64_t i = 0; i < count; i++) std::memcpy(to + i * k, from + i * stride, k * sizeof(bf16));
}

// [rows][k] -> [k][room], room ≥ rows; what is behind the rows becomes 0.
void transpose(const bf16* x, int64_t rows, int64_t k, int64_t room, bf16* out) {
  for (int64_t j = 0; j < k; j++) std::memset(out + j * room + rows, 0, (room - rows) * sizeof(bf16));
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < k; j++) out[j * room + i] = x[i * k + j];
}

struct Task {
  Shape a;
  std::vector<bf16> keys, values, queries, grads;
  std::vector<int32_t> key_rows, value_rows, key_pairs, value_pairs, weight_pairs, slope_pairs;
  std::vector<float> scores, slopes, key_sums, value_sums;
  std::vector<bf16> weights, slopes16, turned_queries, turned_grads;

  explicit Task(const Shape& shape) : a(shape) {
    keys.resize(a.seen * a.k), values.resize(a.seen * a.k), queries.resize(a.tokens * a.k);
    key_rows.resize(a.padded() * (a.k / 2)), value_pairs.resize(a.columns() * a.half());
    scores.resize(ROWS * a.padded()), weights.resize(ROWS * a.padded());
  }
  void for_backward() {
    grads.resize(a.tokens * a.k), value_rows.resize(key_rows.size()), key_pairs.resize(value_pairs.size());
    int64_t pairs = (a.tokens + 1) / 2;
    weight_pairs.resize(a.padded() * pairs), slope_pairs.resize(a.padded() * pairs);
    slopes.resize(scores.size()), slopes16.resize(weights.size());
    key_sums.resize(a.k * a.padded()), value_sums.resize(a.k * a.padded());
    turned_queries.resize(a.k * 2 * pairs), turned_grads.resize(a.k * 2 * pairs);
  }

  // Scores of `count` queries from `token` on with the packed keys of panels from … to -> out [ROWS][padded].
  void products(const bf16* rows, const int32_t* panels, int count, int64_t from, int64_t to, float* out) const {
    float t[ROWS * PANEL];
    for (int64_t s = from / PANEL * PANEL; s < to; s += PANEL) {
      times_panel<Bf16>(count, (const int32_t*)rows, a.k / 2, panels + s * (a.k / 2), a.k / 2, t);
      for (int i = 0; i < count; i++) std::memcpy(out + i * a.padded() + s, t + i * PANEL, PANEL * sizeof(float));
    }
  }

  // scores of one query -> softmax, in place; 0 outside of what it sees.
  void softmax(float* row, int64_t from, int64_t to) const {
    Floats inverse = floats(1.0f / exp_row(row, from, to, row));
    for (int64_t i = from; i < to; i += 16) {
      Mask m = tail_mask(to - i);
      store(row + i, m, mul(load(row + i, m), inverse));
    }
    std::memset(row, 0, from * sizeof(float));
    std::memset(row + to, 0, (a.padded() - to) * sizeof(float));
  }

  void narrowed(const float* from, int count, bf16* to) const {
    for (int64_t i = 0; i < count * a.padded(); i += 16) store(to + i, load(from + i));
  }

  // out rows [k], `stride` apart = rows16 [count][padded] · what was packed in pairs.
  void mixed(const bf16* rows16, const int32_t* pairs, int count, int64_t from, int64_t to, bf16* out,
             int64_t stride) const {
    float t[ROWS * PANEL];
    int64_t low = from / 2, steps = (to + 1) / 2 - low;
    for (int64_t c = 0; c < a.k; c += PANEL) {
      times_panel<Bf16>(count, (const int32_t*)rows16 + low, a.padded() / 2, pairs + c * a.half() + low * PANEL, steps,
                        t);
      for (int i = 0; i < count; i++)
        for (int64_t j = 0; j < PANEL && c + j < a.k; j += 16)
          store(out + i * stride + c + j, tail_mask(a.k - c - j), load(t + i * PANEL + j));
    }
  }

  // Two rows [padded] of bfloat16 -> row `pair` of the panels [padded / 64][pairs][64].
  void in_pairs(const bf16* even, const bf16* odd, int64_t pair, int32_t* panels) const {
    int64_t pairs = (a.tokens + 1) / 2;
    for (int64_t s = 0; s < a.padded(); s += 16) {
      Ints low = load_words(even + s);
      if (odd) low = either(low, shl(load_words(odd + s), 16));
      store(panels + (s / PANEL * pairs + pair) * PANEL + s % PANEL, low);
    }
  }

  // sums [k][padded] += turned [k][2 · pairs] · what lies in pairs: only tokens that may see a panel's keys count.
  void summed(const bf16* turned, const int32_t* panels, float* sums) const {
    float t[ROWS * PANEL];
    int64_t pairs = (a.tokens + 1) / 2;
    for (int64_t s = 0; s < a.seen; s += PANEL) {
      int64_t first = 0, last = a.tokens;
      if (a.window) {
        int64_t ahead = a.seen - a.tokens;  // token t sees keys up to t + ahead
        first = s - ahead > 0 ? s - ahead : 0;
        int64_t end = s + PANEL - 1 - ahead + a.window;
        last = end < last ? end : last;
        if (last <= first) continue;
      }
      int64_t low = first / 2, steps = (last + 1) / 2 - low;
      for (int64_t j = 0; j < a.k; j += ROWS) {
        int count = a.k - j < ROWS ? (int)(a.k - j) : ROWS;
        times_panel<Bf16>(count, (const int32_t*)turned + j * pairs + low, pairs, panels + (s / PANEL * pairs + low) * PANEL,
                          steps, t);
        for (int i = 0; i < count; i++)
          for (int64_t c = 0; c < PANEL; c += 16) {
            float* to = sums + (j + i) * a.padded() + s + c;
            store(to, add(load(to), load(t + i * PANEL + c)));
          }
      }
    }
  }

  void spread(const float* sums, bf16* out, int64_t stride) const {  // [k][padded] -> rows [k], `stride` apart
    std::vector<float> row(a.k);
    for (int64_t s = 0; s < a.seen; s++) {
      for (int64_t j = 0; j < a.k; j++) row[j] = sums[j * a.padded() + s];
      for (int64_t j = 0; j < a.k; j += 16)
        store(out + s * stride + j, tail_mask(a.k - j), load(row.data() + j, tail_mask(a.k - j)));
    }
  }

  void reach(int64_t token, int count, int64_t* from, int64_t* to) const {  // of `count` queries together
    *from = a.from(token), *to = a.to(token + count - 1);
  }

  void take(const bf16* k, const bf16* v) {
    gather(k, a.seen, a.k, a.groups * a.k, keys.data());
    gather(v, a.seen, a.k, a.groups * a.k, values.data());
    pack_rows(keys.data(), a.seen, a.k, key_rows.data());
    pack_pairs(values.data(), a.seen, a.k, value_pairs.data());
  }

  void forward(const bf16* q, bf16* out) {
    int64_t stride = a.heads * a.k, from, to;
    gather(q, a.tokens, a.k, stride, queries.data());
    for (int64_t t = 0; t < a.tokens; t += ROWS) {
      int count = a.tokens - t < ROWS ? (int)(a.tokens - t) : ROWS;
      reach(t, count, &from, &to);
      products(queries.data() + t * a.k, key_rows.data(), count, from, to, scores.data());
      for (int i = 0; i < count; i++) softmax(scores.data() + i * a.padded(), a.from(t + i), a.to(t + i));
      narrowed(scores.data(), count, weights.data());
      mixed(weights.data(), value_pairs.data(), count, from, to, out + t * stride, stride);
    }
  }

  void backward(const bf16* q, const bf16* g, bf16* dq) {
    int64_t stride = a.heads * a.k, pairs = (a.tokens + 1) / 2, from, to;
    gather(q, a.tokens, a.k, stride, queries.data());
    gather(g, a.tokens, a.k, stride, grads.data());
    for (int64_t t = 0; t < a.tokens; t += ROWS) {
      int count = a.tokens - t < ROWS ? (int)(a.tokens - t) : ROWS;
      reach(t, count, &from, &to);
      products(queries.data() + t * a.k, key_rows.data(), count, from, to, scores.data());
      products(grads.data() + t * a.k, value_rows.data(), count, from, to, slopes.data());
      for (int i = 0; i < count; i++) {
        float *p = scores.data() + i * a.padded(), *d = slopes.data() + i * a.padded();
        softmax(p, a.from(t + i), a.to(t + i));
        std::memset(d, 0, from * sizeof(float));  // beyond the panels lies what an earlier query left
        std::memset(d + to, 0, (a.padded() - to) * sizeof(float));
        Floats sum = floats(0);
        for (int64_t s = 0; s < a.padded(); s += 16)
          sum = fmadd(load(p + s), load(d + s), sum);
        Floats mean = floats(reduce_add(sum));
        for (int64_t s = 0; s < a.padded(); s += 16) {
          Floats slope = mul(load(p + s), sub(load(d + s), mean));
          store(d + s, slope);
        }
      }
      narrowed(scores.data(), count, weights.data());
      narrowed(slopes.data(), count, slopes16.data());
      mixed(slopes16.data(), key_pairs.data(), count, from, to, dq + t * stride, stride);
      for (int i = 0; i < count; i += 2) {
        const bf16 *p = weights.data() + i * a.padded(), *d = slopes16.data() + i * a.padded();
        bool both = i + 1 < count;
        in_pairs(p, both ? p + a.padded() : nullptr, (t + i) / 2, weight_pairs.data());
        in_pairs(d, both ? d + a.padded() : nullptr, (t + i) / 2, slope_pairs.data());
      }
    }
    transpose(queries.data(), a.tokens, a.k, 2 * pairs, turned_queries.data());
    transpose(grads.data(), a.tokens, a.k, 2 * pairs, turned_grads.data());
    summed(turned_queries.data(), slope_pairs.data(), key_sums.data());
    summed(turned_grads.data(), weight_pairs.data(), value_sums.data());
  }
};
}  // namespace

extern "C" {

// queries, out [rows, tokens, heads, k]; keys, values [rows, seen, groups, k]; k even. window 0: all see all. Otherwise
// causal: token t, the (seen - tokens + t)-th, sees itself and the window - 1 before it.
int scumble_train_attention(const bf16* queries, const bf16* keys, const bf16* values, bf16* out, int64_t rows,
                             int64_t tokens, int64_t seen, int64_t heads, int64_t groups, int64_t k, int64_t window,
                             int threads) {
  Shape shape{tokens, seen, heads, groups, k, window};
  Guard guard;
#pragma omp parallel num_threads(threads)
  {
    std::optional<Task> own;
    guard([&] { own.emplace(shape); });
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < rows * groups; unit++) guard([&] {
      Task& task = *own;
      int64_t row = unit / groups, g = unit % groups;
      int64_t q = row * tokens * heads * k + g * shape.share() * k, kv = (row * seen * groups + g) * k;
      task.take(keys + kv, values + kv);
      for (int64_t j = 0; j < shape.share(); j++) task.forward(queries + q + j * k, out + q + j * k);
    });
  }
  return guard.result();
}

int scumble_train_attention_back(const bf16* grad, const bf16* queries, const bf16* keys, const bf16* values, bf16* dq,
                                  bf16* dk, bf16* dv, int64_t rows, int64_t tokens, int64_t seen, int64_t heads,
                                  int64_t groups, int64_t k, int64_t window, int threads) {
  Shape shape{tokens, seen, heads, groups, k, window};
  Guard guard;
#pragma omp parallel num_threads(threads)
  {
    std::optional<Task> own;
    guard([&] {
      own.emplace(shape);
      own->for_backward();
    });
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < rows * groups; unit++) guard([&] {
      Task& task = *own;
      int64_t row = unit / groups, g = unit % groups;
      int64_t q = row * tokens * heads * k + g * shape.share() * k, kv = (row * seen * groups + g) * k;
      task.take(keys + kv, values + kv);
      pack_rows(task.values.data(), seen, k, task.value_rows.data());
      pack_pairs(task.keys.data(), seen, k, task.key_pairs.data());
      std::fill(task.key_sums.begin(), task.key_sums.end(), 0.0f);
      std::fill(task.value_sums.begin(), task.value_sums.end(), 0.0f);
      for (int64_t j = 0; j < shape.share(); j++) task.backward(queries + q + j * k, grad + q + j * k, dq + q + j * k);
      task.spread(task.key_sums.data(), dk + kv, groups * k);
      task.spread(task.value_sums.data(), dv + kv, groups * k);
    });
  }
  return guard.result();
}
}
