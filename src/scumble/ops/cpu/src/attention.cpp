// Grouped-query attention: scores, softmax and the mix of values for up to six query rows at a time, scores in float32.
// For many queries keys and values are packed once a call into the panels of gemm.h; for few they are read as they lie.
// Both take every sum in the same order: along a head for scores, over pairs of positions (2i, 2i + 1) for the mix. So a
// query's result depends on what it sees alone, not on the queries beside it or on where the cache begins.
#include <omp.h>

#include <vector>

#include "guard.h"
#include "pack.h"
#include "row.h"

namespace {

struct Span {  // what a query sees: keys from … to - 1
  int64_t from, to;
};

struct Shape {
  int64_t n, heads, groups, k, seen, stride, window, odd;  // odd: 1 where the first key's position is
  int64_t share() const { return heads / groups; }
  int64_t rows() const { return n * share(); }
  int64_t padded() const { return (seen + PANEL) / PANEL * PANEL + PANEL; }
  int64_t half() const { return (seen + odd + 1) / 2; }
  Span span(int64_t token) const {
    int64_t to = window ? seen - n + token + 1 : seen;
    return {window && to > window ? to - window : 0, to};
  }
  int64_t place(int64_t g, int64_t row) const { return (row / share() * heads + g * share() + row % share()) * k; }
};

// R rows of weights, in pairs of positions low … low + steps - 1, times values as they lie, of BLOCKS times 16 columns from
// column c on -> out [R][64].
template <int R, int BLOCKS>
void rows_times_pairs(const int32_t* w, int64_t stride, const bf16* values, int64_t k, int64_t c, int64_t low,
                      int64_t steps, int64_t odd, int64_t seen, float* out) {
  Floats acc[R][BLOCKS];
  Mask m[BLOCKS];
  for (int j = 0; j < BLOCKS; j++) m[j] = c + 16 * j < k ? tail_mask(k - c - 16 * j) : 0;
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int j = 0; j < BLOCKS; j++) acc[r][j] = floats(0);
  for (int64_t g = low; g < low + steps; g++) {
    int64_t first = 2 * g - odd, second = first + 1;
    Ints b[BLOCKS];
#pragma GCC unroll 4
    for (int j = 0; j < BLOCKS; j++) {
      Mask one = first >= 0 ? m[j] : 0, two = second < seen ? m[j] : 0;
      Ints high = load_words(values + second * k + c + 16 * j, two);
      b[j] = either(load_words(values + first * k + c + 16 * j, one), shl(high, 16));
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      Ints x = ints(w[r * stride + g]);
#pragma GCC unroll 4
      for (int j = 0; j < BLOCKS; j++) acc[r][j] = Bf16::dot(acc[r][j], x, b[j]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int j = 0; j < BLOCKS; j++) store(out + r * PANEL + 16 * j, acc[r][j]);
}

// 64 columns, as many at a time as their sums have registers.
template <int R>
void rows_times_values(const int32_t* w, int64_t stride, const bf16* values, int64_t k, int64_t c, int64_t low,
                       int64_t steps, int64_t odd, int64_t seen, float* out) {
  constexpr int BLOCKS = SUMS >= 4 * R ? 4 : SUMS >= 2 * R ? 2 : 1;
  for (int j = 0; j < PANEL; j += 16 * BLOCKS)
    rows_times_pairs<R, BLOCKS>(w, stride, values, k, c + j, low, steps, odd, seen, out + j);
}

void times_pairs(int rows, const int32_t* w, int64_t stride, const bf16* values, int64_t k, int64_t c, int64_t low,
                 int64_t steps, int64_t odd, int64_t seen, float* out) {
  switch (rows) {
    case 6: return rows_times_values<6>(w, stride, values, k, c, low, steps, odd, seen, out);
    case 5: return rows_times_values<5>(w, stride, values, k, c, low, steps, odd, seen, out);
    case 4: return rows_times_values<4>(w, stride, values, k, c, low, steps, odd, seen, out);
    case 3: return rows_times_values<3>(w, stride, values, k, c, low, steps, odd, seen, out);
    case 2: return rows_times_values<2>(w, stride, values, k, c, low, steps, odd, seen, out);
    default: return rows_times_values<1>(w, stride, values, k, c, low, steps, odd, seen, out);
  }
}

// Up to six query rows of one key head. packed_keys null: keys and values are read as they lie.
struct Block {
  const Shape& s;
  const bf16 *queries, *keys, *values;
  const int32_t *packed_keys, *packed_values;
  std::vector<float>& scores;
  std::vector<bf16>&weights, &some;

  void run(int64_t g, int64_t first, int count, bf16* out) {
    const int64_t k = s.k, padded = s.padded();
    Span spans[ROWS];
    int64_t lowest = s.seen, highest = 0;
    float total[ROWS], t[ROWS * PANEL];
    for (int i = 0; i < count; i++) {
      std::memcpy(some.data() + i * k, queries + s.place(g, first + i), k * sizeof(bf16));
      spans[i] = s.span((first + i) / s.share());
      lowest = spans[i].from < lowest ? spans[i].from : lowest;
      highest = spans[i].to > highest ? spans[i].to : highest;
    }
    const int32_t* asking = (const int32_t*)some.data();
    if (packed_keys) {
      for (int64_t at = lowest / PANEL * PANEL; at < highest; at += PANEL) {
        times_panel<Bf16>(count, asking, k / 2, packed_keys + at * (k / 2), k / 2, t);
        for (int i = 0; i < count; i++) std::memcpy(scores.data() + i * padded + at, t + i * PANEL, sizeof(t) / ROWS);
      }
    } else {
      Floats sums[ROWS];
      for (int64_t at = lowest / 16 * 16; at < highest; at += 16) {
        times_plain<Bf16>(count, asking, k / 2, (const int32_t*)(keys + at * k), s.seen - at, k / 2, sums);
        for (int i = 0; i < count; i++) store(scores.data() + i * padded + at, sums[i]);
      }
    }
    for (int i = 0; i < count; i++) {  // weights are 0 where a query sees nothing
      bf16* row = weights.data() + i * padded;
      std::memset(row, 0, (spans[i].from + s.odd) * sizeof(bf16));
      std::memset(row + spans[i].to + s.odd, 0, (padded - spans[i].to - s.odd) * sizeof(bf16));
      total[i] = exp_row(scores.data() + i * padded, spans[i].from, spans[i].to, row + s.odd);
    }
    int64_t low = (lowest + s.odd) / 2, steps = (highest + s.odd + 1) / 2 - low;  // pairs with any weight
    for (int64_t c = 0; c < k; c += PANEL) {
      const int32_t* w = (const int32_t*)weights.data();
      if (packed_keys)
        times_panel<Bf16>(count, w + low, padded / 2, packed_values + c * s.half() + low * PANEL, steps, t);
      else
        times_pairs(count, w, padded / 2, values, k, c, low, steps, s.odd, s.seen, t);
      for (int i = 0; i < count; i++)
        for (int64_t j = 0; j < PANEL && c + j < k; j += 16)
          store(out + s.place(g, first + i) + c + j, tail_mask(k - c - j),
                div(load(t + i * PANEL + j), floats(total[i])));
    }
  }
};
}  // namespace

extern "C" {

// queries and out [n, heads, k], k even; keys, values: `groups` runs of `seen` rows [k], `stride` numbers apart.
// window 0: every query sees all keys. Otherwise causal: query i, the (seen - n + i)-th token, sees itself and the
// window - 1 tokens before it. first: the position of the first key in its text. few: read keys and values as they lie.
int scumble_attention(const bf16* queries, const bf16* keys, const bf16* values, bf16* out, int64_t n, int64_t heads,
                      int64_t groups, int64_t k, int64_t seen, int64_t stride, int64_t window, int64_t first,
                      int64_t few, int threads) {
  const Shape s{n, heads, groups, k, seen, stride, window, first & 1};
  const int64_t rows = s.rows(), key_size = s.padded() * (k / 2);
  const int64_t value_size = (k + PANEL - 1) / PANEL * PANEL * s.half();
  static thread_local std::vector<int32_t> kept;
  Guard guard;
  int32_t* room = nullptr;
  if (!few) guard([&] {
      if ((int64_t)kept.size() < groups * (key_size + value_size)) kept.resize(groups * (key_size + value_size));
      room = kept.data();
    });
  // Rows a task: few tasks must do for all threads, many shall share what they read.
  int64_t step = few ? ROWS : 8 * ROWS;
  if (few && groups < threads) step = (rows * groups + threads - 1) / threads < ROWS ? (rows * groups + threads - 1) / threads : ROWS;
  const int64_t chunks = (rows + step - 1) / step;
#pragma omp parallel num_threads(threads) if (!few || n * heads * k * seen > 262144)
  {
#pragma omp for
    for (int64_t g = 0; g < (few ? 0 : groups); g++) guard([&] {
        int32_t *packed_keys = room + g * (key_size + value_size), *packed_values = packed_keys + key_size;
        pack_rows(keys + g * stride, seen, k, packed_keys);
        pack_pairs(values + g * stride, seen, k, packed_values, s.odd);
      });
    std::vector<float> scores;
    std::vector<bf16> weights, some;
    guard([&] { scores.resize(ROWS * s.padded()), weights.resize(ROWS * s.padded()), some.resize(ROWS * k); });
#pragma omp for schedule(static)
    for (int64_t task = 0; task < groups * chunks; task++) guard([&] {
        int64_t g = task / chunks, begin = task % chunks * step, end = begin + step < rows ? begin + step : rows;
        const int32_t* packed = few ? nullptr : room + g * (key_size + value_size);
        Block block{s, queries, keys + g * stride, values + g * stride, packed, few ? nullptr : packed + key_size,
                    scores, weights, some};
        for (int64_t r = begin; r < end; r += ROWS) block.run(g, r, end - r < ROWS ? (int)(end - r) : ROWS, out);
      });
  }
  return guard.result();
}
}
