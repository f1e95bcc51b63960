// The law of a canvas under a structure, as structure/law.py defines it: backward sums and maxima over positions ×
// states, a draw, the most probable path, and the entropies under the law. One thread, sums in a fixed order.
//
// A probability is a Scaled number, mantissa · 2^exponent, so that what is improbable by thousands of nats keeps its
// value, and no exp or log is computed per edge: aligning two exponents is an integer subtraction.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr int64_t LOWEST = std::numeric_limits<int32_t>::min() / 4;  // the exponent of zero
constexpr double LOG2E = 1.4426950408889634;

struct Scaled {
  double mantissa;  // 0, or in [1, 2)
  int64_t exponent;
};

// 2^power for power ≤ 0; 0 where that is below what a double holds.
inline double power_of_two(int64_t power) {
  if (power < -1000) return 0.0;
  uint64_t bits = (uint64_t)(1023 + power) << 52;
  double out;
  std::memcpy(&out, &bits, 8);
  return out;
}

inline Scaled normal(double value, int64_t exponent) {
  if (!(value > 0)) return {0.0, LOWEST};
  int shift;
  double mantissa = std::frexp(value, &shift);
  return {2 * mantissa, exponent + shift - 1};
}

// e^logarithm
inline Scaled from_log(double logarithm) {
  if (!(logarithm > -1e9)) return {0.0, LOWEST};
  double power = logarithm * LOG2E, whole = std::floor(power);
  return normal(std::exp2(power - whole), (int64_t)whole);
}

inline double to_log(Scaled x) {
  return x.mantissa > 0 ? std::log(x.mantissa) + x.exponent / LOG2E : -std::numeric_limits<double>::infinity();
}

// x / y as a double; y > 0
inline double ratio(Scaled x, Scaled y) {
  if (x.mantissa == 0) return 0.0;
  int64_t power = x.exponent - y.exponent;
  if (power > 1000) return std::numeric_limits<double>::max();
  return x.mantissa / y.mantissa * (power <= 0 ? power_of_two(power) : std::ldexp(1.0, (int)power));
}

// Σ of terms whose product with a mantissa and exponent is given by `at`; in order.
template <typename At>
inline Scaled sum_of(int64_t begin, int64_t end, At at) {
  int64_t high = 2 * LOWEST;
  for (int64_t i = begin; i < end; i++) high = std::max(high, at(i).exponent);
  double total = 0;
  for (int64_t i = begin; i < end; i++) {
    Scaled term = at(i);
    total += term.mantissa * power_of_two(term.exponent - high);
  }
  return normal(total, high);
}

inline Scaled times(Scaled x, Scaled y) { return {x.mantissa * y.mantissa, x.exponent + y.exponent}; }

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

}  // namespace

extern "C" {

// A graph as structure/law.py: Graph has it: target, label [P], first [S + 1], members [M], begin [labels + 1].
// mass, entropy, best [n, C] float64; reachable [S] float64: 1 where a canvas may end (b_n), else 0; start: its state;
// uniforms [n], or null: no draw.
// Written: log_probability [1], entropies [n], drawn [n] classes (0 behind the end) with what is left of the uniforms
// in rest [n], likely [n]: classes of the most probable path.
void scumble_law(const int64_t* target, const int64_t* label, const int64_t* first, const int64_t* members,
                 const int64_t* begin, const double* mass, const double* entropy, const double* best,
                 const double* reachable, const double* uniforms, double* log_probability, double* entropies,
                 int64_t* drawn, double* rest, int64_t* likely, int64_t n, int64_t states, int64_t classes,
                 int64_t labels, int64_t start) {
  std::vector<Scaled> weight(n * labels), one(classes), ahead((n + 1) * states);
  std::vector<double> peak(n * labels), high((n + 1) * states);
  const double none = -std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < n; i++) {
    for (int64_t c = 0; c < classes; c++) one[c] = from_log(mass[i * classes + c]);
    for (int64_t l = 0; l < labels; l++) {
      weight[i * labels + l] = sum_of(begin[l], begin[l + 1], [&](int64_t m) { return one[members[m]]; });
      double top = none;
      for (int64_t m = begin[l]; m < begin[l + 1]; m++) top = std::max(top, best[i * classes + members[m]]);
      peak[i * labels + l] = top;
    }
  }
  for (int64_t s = 0; s < states; s++) {
    ahead[n * states + s] = reachable[s] > 0 ? Scaled{1.0, 0} : Scaled{0.0, LOWEST};
    high[n * states + s] = reachable[s] > 0 ? 0.0 : none;
  }
  for (int64_t i = n - 1; i >= 0; i--) {
    const Scaled *w = &weight[i * labels], *b = &ahead[(i + 1) * states];
    const double *p = &peak[i * labels], *h = &high[(i + 1) * states];
    ahead[i * states] = {1.0, 0};  // state 0: the end id has come, and what follows is free
    high[i * states] = 0.0;
    for (int64_t s = 1; s < states; s++) {
      ahead[i * states + s] =
          sum_of(first[s], first[s + 1], [&](int64_t e) { return times(w[label[e]], b[target[e]]); });
      double top = none;
      for (int64_t e = first[s]; e < first[s + 1]; e++) top = std::max(top, p[label[e]] + h[target[e]]);
      high[i * states + s] = top;
    }
  }
  *log_probability = to_log(ahead[start]);
  std::fill(drawn, drawn + n, 0);
  std::fill(likely, likely + n, 0);
  std::fill(rest, rest + n, 0.0);
  std::fill(entropies, entropies + n, 0.0);
  if (ahead[start].mantissa == 0) return;

  int64_t state = start;
  for (int64_t i = 0; i < n && state != 0; i++) {
    int64_t pick = -1;
    double top = none;
    for (int64_t e = first[state]; e < first[state + 1]; e++) {
      double value = peak[i * labels + label[e]] + high[(i + 1) * states + target[e]];
      if (value > top) top = value, pick = e;
    }
    double own = none;
    for (int64_t m = begin[label[pick]]; m < begin[label[pick] + 1]; m++)
      if (best[i * classes + members[m]] > own) own = best[i * classes + members[m]], likely[i] = members[m];
    state = target[pick];
  }

  state = start;
  for (int64_t i = 0; uniforms && i < n && state != 0; i++) {
    double left = uniforms[i];
    Scaled whole = ahead[i * states + state];
    int64_t pick = choose(first[state], first[state + 1], &left, [&](int64_t e) {
      return ratio(times(weight[i * labels + label[e]], ahead[(i + 1) * states + target[e]]), whole);
    });
    Scaled set = weight[i * labels + label[pick]];
    int64_t m = choose(begin[label[pick]], begin[label[pick] + 1], &left,
                       [&](int64_t m) { return ratio(from_log(mass[i * classes + members[m]]), set); });
    drawn[i] = members[m], rest[i] = left;
    state = target[pick];
  }

  std::vector<double> at(states, 0.0), after(states), flow(labels), share(classes);
  at[start] = 1.0;
  for (int64_t i = 0; i < n; i++) {
    std::fill(after.begin(), after.end(), 0.0);
    std::fill(flow.begin(), flow.end(), 0.0);
    std::fill(share.begin(), share.end(), 0.0);
    after[0] = at[0];
    for (int64_t s = 1; s < states; s++) {
      if (at[s] == 0) continue;
      Scaled whole = ahead[i * states + s];
      for (int64_t e = first[s]; e < first[s + 1]; e++) {
        Scaled way = times(weight[i * labels + label[e]], ahead[(i + 1) * states + target[e]]);
        double moved = at[s] * ratio(way, whole);
        flow[label[e]] += moved;
        after[target[e]] += moved;
      }
    }
    for (int64_t c = 0; c < classes; c++) one[c] = from_log(mass[i * classes + c]);
    for (int64_t l = 0; l < labels; l++) {
      if (flow[l] == 0) continue;
      for (int64_t m = begin[l]; m < begin[l + 1]; m++)
        share[members[m]] += flow[l] * ratio(one[members[m]], weight[i * labels + l]);
    }
    double total = plogp(at[0]);
    for (int64_t c = 0; c < classes; c++)
      if (share[c] > 0) total += plogp(share[c]) + share[c] * entropy[i * classes + c];
    entropies[i] = std::max(total, 0.0);
    at.swap(after);
  }
}
}
