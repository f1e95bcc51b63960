// The law of a canvas under a structure, as structure/law.py defines it: backward sums and maxima over positions ×
// states, a draw, the most probable path, and the entropies under the law. Every state's sum is one thread's, in the
// order of its edges, so the numbers do not depend on how many threads there are.
//
// A probability is a Scaled number, mantissa · 2^exponent, so that what is improbable by thousands of nats keeps its
// value, and no exp or log is computed per edge. Exponents are whole numbers in doubles: they add without conversions.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "guard.h"

namespace {

constexpr double LOWEST = -1e15;  // the exponent of zero
constexpr double LOG2E = 1.4426950408889634, LN2 = 0.6931471805599453;
constexpr double NONE = -std::numeric_limits<double>::infinity();
constexpr double TINY = 1e-20;  // a share of 1 that is less than what rounding does to the others

struct Scaled {
  double mantissa;  // 0, or in about 1 … 2
  double exponent;
};

// What a set of classes weighs at a position, and what lies ahead of a state there: the sum, and the best way.
struct Weight {
  Scaled sum;
  double best;
};

// 2^power for a whole power ≤ 1000; 0 where that is below what a double holds.
inline double power_of_two(double power) {
  double shifted = power + (6755399441055744.0 + 1023);  // the low bits of 1.5 · 2^52 + k are those of k
  uint64_t bits;
  std::memcpy(&bits, &shifted, 8);
  bits <<= 52;
  double out;
  std::memcpy(&out, &bits, 8);
  return power < -1000 ? 0.0 : out;
}

inline Scaled normal(double value, double exponent) {
  if (!(value > 0)) return {0.0, LOWEST};
  uint64_t bits;
  std::memcpy(&bits, &value, 8);
  exponent += (double)(int64_t)(bits >> 52) - 1023;
  bits = (bits & ((1ull << 52) - 1)) | 1023ull << 52;
  std::memcpy(&value, &bits, 8);
  return {value, exponent};
}

// e^logarithm of many; the compiler makes vectors of it. 2^f for f in 0 … 1 is √2 · e^g with |g| ≤ ln 2 / 2, by Taylor.
void from_logs(const double* logarithms, Scaled* out, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    double power = logarithms[i] * LOG2E, whole = std::floor(power), g = (power - whole - 0.5) * LN2;
    double series = 1.0 / 6227020800;
    for (double factor : {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                          1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0})
      series = series * g + factor;
    bool some = logarithms[i] > -1e9;
    out[i] = {some ? series * 1.4142135623730951 : 0.0, some ? whole : LOWEST};
  }
}

inline double to_log(Scaled x) { return x.mantissa > 0 ? std::log(x.mantissa) + x.exponent / LOG2E : NONE; }

inline Scaled times(Scaled x, Scaled y) { return {x.mantissa * y.mantissa, x.exponent + y.exponent}; }

// x / y as a double, for x ≤ y · 2^1000; y > 0
inline double ratio(Scaled x, Scaled y) { return x.mantissa / y.mantissa * power_of_two(x.exponent - y.exponent); }

// A running sum of Scaled numbers, held relative to a base that follows the largest of them from afar.
struct Sum {
  double total = 0, base = 2 * LOWEST;

  void add(Scaled x) {
    double power = x.exponent - base;
    if (power > 900) total *= power_of_two(-power), base = x.exponent, power = 0;
    total += x.mantissa * power_of_two(power);
  }
  Scaled value() const { return normal(total, base); }
};

// Inverse CDF over shares(begin … end - 1), which sum to about 1: the index, and in `uniform` its place in the share.
template <typename Share>
inline int64_t choose(int64_t begin, int64_t end, double* uniform, Share share) {
  double total = 0, running = 0;
  for (int64_t i = begin; i < end; i++) total += share(i);
  double target = *uniform * total;
  int64_t last = -1;
  double before = 0, own = 0;
  for (int64_t i = begin; i < end; i++) {
    double s = share(i);
    if (s <= 0) continue;
    last = i;
    before = running;
    own = s;
    running += s;
    if (running > target) break;
  }
  *uniform = std::min(std::max((target - before) / own, 0.0), std::nextafter(1.0, 0.0));
  return last;
}

inline double plogp(double p) { return p > 0 ? -p * std::log(p) : 0.0; }

// As structure/graph.py has it: target, label [P], first [S + 1], members [M], begin [labels + 1].
struct Graph {
  const int32_t *target, *label, *first, *members, *begin;
  int64_t states, classes, labels;
};

// The canvas's part of it: the states live[begins[i]] … live[begins[i + 1] - 1] may stand before position i.
struct Window {
  const int32_t* live;
  const int64_t* begins;  // [n + 2]
  const uint8_t* ends;    // [S]: whether the canvas may leave this state behind
  int64_t n, start;
};

struct Law {
  Graph graph;
  Window window;
  const double *mass, *entropy, *best;  // [n, C]
  std::unique_ptr<Scaled[]> one;        // [n, C]: masses
  std::unique_ptr<Weight[]> weight;     // [n, labels]
  std::unique_ptr<Weight[]> ahead;      // [n + 1, S]; of live states only

  const Weight& weighs(int64_t i, int64_t edge) const { return weight[i * graph.labels + graph.label[edge]]; }
  const Weight& beyond(int64_t i, int64_t edge) const { return ahead[(i + 1) * graph.states + graph.target[edge]]; }
  Scaled way(int64_t i, int64_t edge) const { return times(weighs(i, edge).sum, beyond(i, edge).sum); }

  Weight weigh(int64_t i, int64_t l) const {
    int64_t only = i * graph.classes + graph.members[graph.begin[l]];
    if (graph.begin[l + 1] - graph.begin[l] == 1) return {one[only], best[only]};
    Sum sum;
    double top = NONE;
    for (int32_t m = graph.begin[l]; m < graph.begin[l + 1]; m++) {
      int64_t at = i * graph.classes + graph.members[m];
      sum.add(one[at]);
      top = std::max(top, best[at]);
    }
    return {sum.value(), top};
  }

  Weight ahead_of(int64_t i, int32_t state) const {
    Sum sum;
    double top = NONE;
    for (int32_t e = graph.first[state]; e < graph.first[state + 1]; e++) {
      const Weight& w = weighs(i, e);
      const Weight& b = beyond(i, e);
      sum.add(times(w.sum, b.sum));
      top = std::max(top, w.best + b.best);
    }
    return {sum.value(), top};
  }

  void look_back(int threads) {
    const Weight finished = {{1.0, 0.0}, 0.0}, nothing = {{0.0, LOWEST}, NONE};
    const int64_t n = window.n, *begins = window.begins;
    for (int64_t k = begins[n]; k < begins[n + 1]; k++)
      ahead[n * graph.states + window.live[k]] = window.ends[window.live[k]] ? finished : nothing;
    for (int64_t i = 0; i <= n; i++) ahead[i * graph.states] = finished;  // the end id has come: what follows is free
#pragma omp parallel num_threads(threads) if (begins[n + 1] > 16384)
    {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < n; i++)
        for (int64_t l = 0; l < graph.labels; l++) weight[i * graph.labels + l] = weigh(i, l);
      for (int64_t i = n - 1; i >= 0; i--) {
#pragma omp for schedule(static)
        for (int64_t k = begins[i]; k < begins[i + 1]; k++)
          ahead[i * graph.states + window.live[k]] = ahead_of(i, window.live[k]);
      }
    }
  }

  void likely(int64_t* out) const {
    int32_t state = (int32_t)window.start;
    for (int64_t i = 0; i < window.n && state != 0; i++) {
      int32_t pick = -1;
      double top = NONE, own = NONE;
      for (int32_t e = graph.first[state]; e < graph.first[state + 1]; e++) {
        double value = weighs(i, e).best + beyond(i, e).best;
        if (value > top) top = value, pick = e;
      }
      int32_t l = graph.label[pick];
      for (int32_t m = graph.begin[l]; m < graph.begin[l + 1]; m++) {
        double value = best[i * graph.classes + graph.members[m]];
        if (value > own) own = value, out[i] = graph.members[m];
      }
      state = graph.target[pick];
    }
  }

  void draw(const double* uniforms, int64_t* out, double* rest) const {
    int32_t state = (int32_t)window.start;
    for (int64_t i = 0; i < window.n && state != 0; i++) {
      double left = uniforms[i];
      Scaled whole = ahead[i * graph.states + state].sum;
      int64_t pick = choose(graph.first[state], graph.first[state + 1], &left, [&](int64_t e) {
        return ratio(way(i, e), whole);
      });
      Scaled set = weighs(i, pick).sum;
      int32_t l = graph.label[pick];
      int64_t m = choose(graph.begin[l], graph.begin[l + 1], &left,
                         [&](int64_t m) { return ratio(one[i * graph.classes + graph.members[m]], set); });
      out[i] = graph.members[m], rest[i] = left;
      state = graph.target[pick];
    }
  }

  void entropies(double* out) const {
    std::vector<double> at(graph.states, 0.0), after(graph.states, 0.0), flow(graph.labels), share(graph.classes);
    at[window.start] = 1.0;
    for (int64_t i = 0; i < window.n; i++) {
      std::fill(flow.begin(), flow.end(), 0.0);
      std::fill(share.begin(), share.end(), 0.0);
      after[0] = at[0];
      for (int64_t k = window.begins[i]; k < window.begins[i + 1]; k++) {
        int32_t state = window.live[k];
        double here = at[state];
        at[state] = 0.0;
        if (here < TINY) continue;
        Scaled whole = ahead[i * graph.states + state].sum;
        here /= whole.mantissa;
        for (int32_t e = graph.first[state]; e < graph.first[state + 1]; e++) {
          Scaled one_way = way(i, e);
          double moved = here * one_way.mantissa * power_of_two(one_way.exponent - whole.exponent);
          flow[graph.label[e]] += moved;
          after[graph.target[e]] += moved;
        }
      }
      for (int64_t l = 0; l < graph.labels; l++) {
        if (flow[l] == 0) continue;
        Scaled set = weight[i * graph.labels + l].sum;
        double part = flow[l] / set.mantissa;
        for (int32_t m = graph.begin[l]; m < graph.begin[l + 1]; m++) {
          Scaled own = one[i * graph.classes + graph.members[m]];
          share[graph.members[m]] += part * own.mantissa * power_of_two(own.exponent - set.exponent);
        }
      }
      if (at[0] >= TINY)  // behind the end any id may stand
        for (int64_t c = 0; c < graph.classes; c++) {
          Scaled own = one[i * graph.classes + c];
          share[c] += at[0] * own.mantissa * power_of_two(own.exponent);
        }
      double total = 0.0;
      for (int64_t c = 0; c < graph.classes; c++)
        if (share[c] > TINY) total += plogp(share[c]) + share[c] * entropy[i * graph.classes + c];
      out[i] = std::max(total, 0.0);
      at.swap(after);
    }
  }
};

}  // namespace

extern "C" {

// A graph and a window of n positions as above; mass, entropy, best [n, C] float64; uniforms [n], or null: no draw.
// Written: log_probability [1], entropies [n], drawn [n] classes (0 behind the end) with what is left of the uniforms
// in rest [n], likely [n]: classes of the most probable path.
int scumble_law(const int32_t* target, const int32_t* label, const int32_t* first, const int32_t* members,
                const int32_t* begin, const int32_t* live, const int64_t* begins, const uint8_t* ends,
                const double* mass, const double* entropy, const double* best, const double* uniforms,
                double* log_probability, double* entropies, int64_t* drawn, double* rest, int64_t* likely, int64_t n,
                int64_t states, int64_t classes, int64_t labels, int64_t start, int threads) {
  Guard guard;
  guard([&] {
    Law law{{target, label, first, members, begin, states, classes, labels}, {live, begins, ends, n, start}, mass,
            entropy, best};
    law.one.reset(new Scaled[n * classes]);
    law.weight.reset(new Weight[n * labels]);
    law.ahead.reset(new Weight[(n + 1) * states]);
    from_logs(mass, law.one.get(), n * classes);
    law.look_back(threads);
    *log_probability = to_log(law.ahead[start].sum);
    std::fill(drawn, drawn + n, 0);
    std::fill(likely, likely + n, 0);
    std::fill(rest, rest + n, 0.0);
    std::fill(entropies, entropies + n, 0.0);
    if (law.ahead[start].sum.mantissa == 0) return;
    law.likely(likely);
    if (uniforms) law.draw(uniforms, drawn, rest);
    law.entropies(entropies);
  });
  return guard.result();
}
}
