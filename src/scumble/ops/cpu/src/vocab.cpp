// The vocabulary operator's statistics of one tile of logits, row by row, while the row is in the first-level cache.
//
// A bfloat16 logit has one of 65,536 values, so softcap(logit) is a table, made by the reference's own operations:
// z = softcap(logit) / temperature is equal to the reference's bit for bit, and no tanh is computed here.
// A row's results depend on that row alone.
#include <omp.h>

#include <vector>

#include "classes.h"
#include "guard.h"
#include "pack.h"
#include "vocab.h"

constexpr int64_t BLOCK = 128;  // ids whose mass is remembered as one number, for the sample

namespace {

// The best `top` so far, descending, the lower id first on a tie; z of ids first … first + width - 1 come in order.
void merge_top(const float* z, int64_t first, int64_t width, int64_t top, float* best, int64_t* ids) {
  for (int64_t i = 0; i < width; i += 16) {
    Mask hit = greater(tail_mask(width - i), load(z + i), floats(best[top - 1]));
    for (; hit; hit &= hit - 1) {
      int64_t j = i + __builtin_ctz(hit), at = top - 1;
      if (!(z[j] > best[at])) continue;
      for (; at > 0 && z[j] > best[at - 1]; at--) best[at] = best[at - 1], ids[at] = ids[at - 1];
      best[at] = z[j], ids[at] = first + j;
    }
  }
}
}  // namespace

extern "C" {

// logits [n, width] bfloat16, first: id of column 0.
// Running statistics, updated: peak, argmax, total = Σ e^(z-peak), energy = Σ e^(z-peak)(z-peak).
// Written: mass = log Σ e^z over every 128 ids, this tile's from its block on; factor = what earlier weights must be
// multiplied by; weights [n, width] bfloat16 = e^(z-peak) · column[id], where wanted.
// column [width], or null for 1: the scales of an embedding in int8.
// classes [asked], rows one after another: this tile's part of the statistics by class.
void scumble_vocab_tile(const bf16* logits, const VocabState* s, int64_t n, int64_t width, int64_t first, bf16* weights,
                        const float* column, const ClassTile* classes, int64_t asked, int threads) {
#pragma omp parallel for num_threads(threads) if (n > 1)
  for (int64_t row = 0; row < n; row++) {
    float* z = s->scratch + omp_get_thread_num() * s->room;
    float top = capped_row(logits + row * width, s->table, s->heat[row], s->allowed_of(row, first), width, z);
    float old = s->peak[row];
    for (int64_t c = 0; c < asked; c++)
      if (row >= classes[c].begin && row < classes[c].end) class_row(classes[c], row - classes[c].begin, z, first, z + width + 16);
    if (s->top) merge_top(z, first, width, s->top, s->best + row * s->top, s->best_ids + row * s->top);
    if (s->targets) {
      int64_t at = s->targets[row] - first;
      if (at >= 0 && at < width) s->target_z[row] = z[at];
    }
    if (top > old) {
      const Floats wanted = floats(top);
      for (int64_t i = 0; i < width; i += 16) {
        Mask hit = equal(tail_mask(width - i), load(z + i), wanted);
        if (hit) {
          s->argmax[row] = first + i + __builtin_ctz(hit);
          break;
        }
      }
      s->peak[row] = top;
    } else {
      top = old;
    }
    const Floats base = floats(top == -INFINITY ? 0.0f : top);  // nothing allowed so far: e^-inf = 0
    Doubles terms = doubles(0);
    double here = 0;
    for (int64_t from = 0; from < width; from += BLOCK) {
      Doubles sum = doubles(0);
      for (int64_t i = from; i < from + BLOCK && i < width; i += 16) {
        Mask m = tail_mask(width - i);
        Floats shifted = sub(load(z + i, m), base);
        Floats w = keep(m, exp16(shifted));
        Floats t = keep(differ(m, w, floats(0)), mul(w, shifted));
        sum = add(sum, low_doubles(w));
        sum = add(sum, high_doubles(w));
        terms = add(terms, low_doubles(t));
        terms = add(terms, high_doubles(t));
        if (weights && column) w = mul(w, load(column + i, m));
        if (weights) store(weights + row * width + i, m, w);
      }
      double own = reduce_add(sum);
      here += own;
      s->mass[row * s->blocks + (first + from) / BLOCK] = std::log(own) + (top == -INFINITY ? 0.0f : top);
    }
    double drop = s->total[row] > 0 ? (double)old - (double)top : 0.0, shrink = std::exp(drop);
    s->energy[row] = shrink * (s->energy[row] + drop * s->total[row]) + reduce_add(terms);
    s->total[row] = shrink * s->total[row] + here;
    s->factor[row] = (float)shrink;
  }
}

// soft [n, d] float32 = soft · factor [n] + weights [n, width] · table [width, d], sums over pairs of ids in order, this
// tile's rounded to bfloat16. width even or the table's last tile.
int scumble_vocab_soft(const bf16* weights, const bf16* table, const float* factor, float* soft, int64_t n,
                       int64_t width, int64_t d, int threads) {
  const int64_t pairs = (width + 1) / 2, panels = (d + PANEL - 1) / PANEL;
  Guard guard;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t p = 0; p < panels; p++) guard([&] {
      static thread_local std::vector<int32_t> panel;
      static thread_local std::vector<bf16> even;
      if ((int64_t)panel.size() < pairs * PANEL) panel.resize(pairs * PANEL);
      int64_t c = p * PANEL;
      pack_pairs_panel(table, width, d, c, 0, panel.data());
      const bf16* rows = weights;
      int64_t stride = width;
      if (width % 2) {  // rows of whole pairs
        even.assign(n * 2 * pairs, 0);
        for (int64_t r = 0; r < n; r++) std::memcpy(even.data() + r * 2 * pairs, weights + r * width, width * sizeof(bf16));
        rows = even.data(), stride = 2 * pairs;
      }
      float t[ROWS * PANEL];
      for (int64_t r = 0; r < n; r += ROWS) {
        int count = n - r < ROWS ? (int)(n - r) : ROWS;
        times_panel<Bf16>(count, (const int32_t*)(rows + r * stride), stride / 2, panel.data(), pairs, t);
        for (int i = 0; i < count; i++)
          for (int64_t j = 0; j < PANEL && c + j < d; j += 16) {
            Mask m = tail_mask(d - c - j);
            float* to = soft + (r + i) * d + c + j;
            Floats before = mul(load(to, m), floats(factor[r + i]));
            store(to, m, add(before, rounded(load(t + i * PANEL + j))));
          }
      }
    });
  return guard.result();
}

// After the last tile: logsumexp and entropy [n] float32; best and target_z become log-probabilities; soft [n, d] or
// null is divided by the total; block [n] and share [n] or null: the block of ids that each uniform [n] falls into, and
// how much of that block's mass, 0 … 1, lies before it.
void scumble_vocab_finish(const VocabState* s, const double* uniforms, float* logsumexp, float* entropy, float* soft,
                          int64_t* block, double* share, int64_t n, int64_t d, int threads) {
#pragma omp parallel for num_threads(threads) if (n > 1)
  for (int64_t row = 0; row < n; row++) {
    double total = s->total[row], sum = s->peak[row] + std::log(total);
    double nats = std::log(total) - s->energy[row] / total;
    logsumexp[row] = (float)sum;
    entropy[row] = (float)(nats < 0 ? 0 : nats);
    for (int64_t i = 0; i < s->top; i++) s->best[row * s->top + i] = (float)(s->best[row * s->top + i] - sum);
    if (s->targets) s->target_z[row] = (float)(s->target_z[row] - sum);
    for (int64_t i = 0; soft && i < d; i++) soft[row * d + i] /= (float)total;
    if (!uniforms) continue;
    const double* mass = s->mass + row * s->blocks;
    double most = mass[0], all = 0, before = 0;
    for (int64_t b = 1; b < s->blocks; b++) most = mass[b] > most ? mass[b] : most;
    for (int64_t b = 0; b < s->blocks; b++) all += std::exp(mass[b] - most);
    double target = uniforms[row] * all;
    int64_t found = 0, last = 0;
    double own = 0;
    for (int64_t b = 0; b < s->blocks; b++) {  // the first whose mass reaches beyond the target; else the last with any
      double here = std::exp(mass[b] - most);
      if (!(here > 0)) continue;
      last = b, own = here;
      if (before + here > target) break;
      before += here;
    }
    found = last;
    double inside = (target - before) / own;
    block[row] = found;
    share[row] = inside < 0 ? 0 : inside > 1 ? 1 : inside == inside ? inside : 0;
  }
}

// The id of each row inside the block that its uniform fell into: block [n], share [n] in [0, 1] of the block's mass ->
// sample [n], the first id whose cumulative weight exceeds the share.
void scumble_vocab_sample(const VocabHead* head, const VocabState* s, const int64_t* block, const double* share,
                          int64_t* sample, int64_t n, int threads) {
#pragma omp parallel for num_threads(threads) if (n > 1)
  for (int64_t row = 0; row < n; row++) {
    int64_t first = block[row] * BLOCK, width = s->vocab - first < BLOCK ? s->vocab - first : BLOCK, last = 0;
    float z[BLOCK];
    bf16 logits[BLOCK];
    double weights[BLOCK], total = 0, sum = 0;
    for (int64_t i = 0; i < width; i += PANEL) head->logits(row, first + i, logits + i);
    float top = capped_row(logits, s->table, s->heat[row], s->allowed_of(row, first), width, z);
    for (int64_t i = 0; i < width; i++) total += weights[i] = std::exp((double)z[i] - top);
    for (int64_t i = 0; i < width; i++) {
      if (!(weights[i] > 0)) continue;
      last = i;
      if ((sum += weights[i]) > share[row] * total) break;
    }
    sample[row] = first + last;
  }
}

int64_t scumble_vocab_state_size() { return sizeof(VocabState); }
int64_t scumble_vocab_head_size() { return sizeof(VocabHead); }
}
