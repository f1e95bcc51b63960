// A whole layer for a few encoded tokens (an autoregressive step, of one row or of several), in one call: at that size every
// separate call from Python costs as much as its work. Rows share the products; each attends over its own cache. The steps are the other files' kernels, in the order of model/transformer.py.
#include <algorithm>
#include <vector>

#include "four_bit.h"
#include "guard.h"

extern "C" {
void scumble_rms_norm(const bf16*, const bf16*, bf16*, int64_t, int64_t, int64_t, float, int);
void scumble_norm_rope(const bf16*, const bf16*, const bf16*, const bf16*, bf16*, int64_t, int64_t, int64_t, float, int);
int scumble_attention(const bf16*, const bf16*, const bf16*, bf16*, int64_t, int64_t, int64_t, int64_t, int64_t,
                      int64_t, int64_t, int64_t, int64_t, int);
void scumble_attention_tail(const bf16*, const bf16*, const bf16*, const bf16*, const bf16*, bf16*, bf16*, bf16*,
                            int64_t, int64_t, float, int);
void scumble_geglu(const bf16*, const bf16*, bf16*, int64_t, int);
void scumble_router(const bf16*, const bf16*, const bf16*, const bf16*, float*, float*, int64_t*, int64_t, int64_t,
                    int64_t, int64_t, float, int);
int scumble_experts(const bf16*, const float*, const int64_t*, const int32_t*, const int32_t*, const bf16*, const bf16*,
                    bf16*, bf16*, int64_t, int64_t, int64_t, int64_t, int64_t, int);
int scumble_experts_int8(const bf16*, const float*, const int64_t*, const int32_t*, const int32_t*, const float*,
                         const int32_t*, const int32_t*, const float*, bf16*, uint8_t*, float*, bf16*, int64_t,
                         int64_t, int64_t, int64_t, int64_t, int);
void scumble_layer_tail(const bf16*, const bf16*, const bf16*, const bf16*, const bf16*, const bf16*, const uint8_t*,
                        const bf16*, const bf16*, bf16*, int64_t, int64_t, float, int);
int scumble_linear(const bf16*, const int32_t*, const bf16*, bf16*, int64_t, int64_t, int64_t, int);
int scumble_linear_four(const bf16*, const uint8_t*, const uint8_t*, const float*, const float*, int8_t*, int32_t*,
                        float*, bf16*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int);
int scumble_experts_four(const bf16*, const float*, const int64_t*, const FourBits*, const FourBits*, const FourBits*,
                         int8_t*, int32_t*, float*, bf16*, bf16*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                         int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int);
void scumble_quantized_linear(const bf16*, uint8_t*, float*, const int32_t*, const int32_t*, const float*, bf16*,
                              int64_t, int64_t, int64_t, int);
}

namespace {

// A matrix [columns, k] of four bits as in four_bit.h, k whole groups: what multiplies it is padded with zeros.
struct FourWeight {
  FourBits bits;
  int64_t k, columns, group, scales, table, zero_point;
};

// The experts' matrices, one after another; sizes as scumble_experts_four takes them.
struct FourExperts {
  const FourBits *gate, *up, *down;
  int64_t d, f, f_in, d_out, group, down_group, scales, table, zero_point;
};

// A weight as packed for the kernels: in bfloat16 (shift null), or in int8. `four`, where it is not null, is all there is.
struct Weight {
  const int32_t *panels, *shift;
  const float* scale;
  const FourWeight* four;  // of the experts: FourExperts, at experts_up
  bool there() const { return panels || four; }
};

// Everything that a layer reads; the same order as in ops/cpu/native.py, which checks the size.
struct Weights {
  const bf16 *input_norm, *q_norm, *k_norm, *attention_norm, *mlp_norm, *experts_norm, *after_mlp, *after_experts,
      *after_both, *router_scale, *router, *per_expert, *denoise_scalar, *encode_scalar;
  Weight q, k, v, o, gate, up, down, experts_up, experts_down;
};

struct Sizes {
  int64_t rows, n, d, heads, groups, k, mlp, experts, chosen, width;  // n: tokens of all rows
};

// n tokens of one row, and its cache in this layer: heads lie `stride` numbers apart, slots start … end - 1 are live, and
// there is room for n more. window, first, few: as in attention.cpp, window never 0.
struct Row {
  bf16 *keys, *values;
  int64_t n, stride, start, end, window, first, few;
};

struct Room {  // memory for intermediate results, kept by the thread from call to call
  std::vector<char> bytes;
  size_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* at = (T*)(bytes.data() + used);
    used += (count * sizeof(T) + 63) / 64 * 64;
    return at;
  }
};

// Room for rows as products take them. padded, sums: for weights of four bits.
struct Rounded {
  uint8_t* q;
  float* scale;
  bf16* padded;
  int32_t* sums;
};

const bf16* padded_rows(const bf16* x, int64_t n, int64_t k, int64_t wanted, bf16* room) {
  if (k == wanted) return x;
  for (int64_t i = 0; i < n; i++) {
    std::memcpy(room + i * wanted, x + i * k, k * sizeof(bf16));
    std::memset(room + i * wanted + k, 0, (wanted - k) * sizeof(bf16));
  }
  return room;
}

int multiply(const bf16* x, const Weight& w, bf16* out, int64_t n, int64_t k, int64_t columns, const Rounded& room,
             int threads) {
  if (const FourWeight* f = w.four)
    return scumble_linear_four(padded_rows(x, n, k, f->k, room.padded), f->bits.packed, f->bits.scale, f->bits.zero,
                               f->bits.factor, (int8_t*)room.q, room.sums, room.scale, out, n, f->k, columns, f->group,
                               f->scales, f->table, f->zero_point, threads);
  if (!w.shift) return scumble_linear(x, w.panels, nullptr, out, n, k, columns, threads);
  scumble_quantized_linear(x, room.q, room.scale, w.panels, w.shift, w.scale, out, n, k, columns, threads);
  return 0;
}

// The longest row that a product takes: with weights of four bits, whole groups.
int64_t longest(const Weights& w, int64_t k) {
  for (const Weight* one : {&w.q, &w.k, &w.v, &w.o, &w.gate, &w.up, &w.down})
    if (one->four) k = std::max(k, one->four->k);
  const FourExperts* experts = (const FourExperts*)w.experts_up.four;
  return experts ? std::max({k, experts->d, experts->f_in}) : k;
}
}  // namespace

// x, out [n, d], n small: the tokens of all rows, one row after another; cos, sin [n, k].
extern "C" int scumble_layer(const bf16* x, bf16* out, const bf16* cos, const bf16* sin, const Row* rows,
                             const Weights* w, const Sizes* s, float eps, int threads) {
  static thread_local Room room;
  const int64_t n = s->n, d = s->d, wide = s->heads * s->k, narrow_ = s->groups * s->k;
  const int64_t largest = longest(*w, d + wide + s->mlp);
  room.used = 0;
  Guard guard;
  guard([&] { room.bytes.resize(n * (25 * largest + 2 * s->chosen * (d + 16) + 8 * s->experts) + 65536); });
  if (guard.result()) return guard.result();
  int failed = 0;
  auto take = [&](int64_t count) { return room.take<bf16>(n * count); };
  const Rounded rounded{room.take<uint8_t>(n * largest), room.take<float>(n), take(largest),
                        room.take<int32_t>(n * largest / 8)};
  auto times = [&](const bf16* in, const Weight& weight, bf16* to, int64_t size, int64_t columns) {
    failed |= multiply(in, weight, to, n, size, columns, rounded, threads);
  };

  bf16 *normed = take(d), *q = take(wide), *k = take(narrow_), *v = take(narrow_), *turned = take(narrow_);
  scumble_rms_norm(x, w->input_norm, normed, n, d, d, eps, threads);
  times(normed, w->q, q, d, wide);
  times(normed, w->k, k, d, narrow_);
  if (w->v.there()) times(normed, w->v, v, d, narrow_);
  scumble_norm_rope(q, w->q_norm, cos, sin, q, n, s->heads, s->k, eps, threads);
  scumble_norm_rope(k, w->k_norm, cos, sin, turned, n, s->groups, s->k, eps, threads);
  scumble_rms_norm(w->v.there() ? v : k, nullptr, v, n * s->groups, s->k, s->k, eps, threads);

  bf16 *mixed = take(wide), *attended = take(d), *h = take(d), *for_mlp = take(d), *for_experts = take(d);
  int64_t at = 0;
  for (const Row* row = rows; row < rows + s->rows; at += row++->n) {
    for (int64_t i = 0; i < row->n; i++)
      for (int64_t g = 0; g < s->groups; g++) {
        int64_t to = g * row->stride + (row->end + i) * s->k, from = ((at + i) * s->groups + g) * s->k;
        std::memcpy(row->keys + to, turned + from, s->k * sizeof(bf16));
        std::memcpy(row->values + to, v + from, s->k * sizeof(bf16));
      }
    int64_t first = row->start * s->k, seen = row->end + row->n - row->start;
    failed |= scumble_attention(q + at * wide, row->keys + first, row->values + first, mixed + at * wide, row->n,
                                s->heads, s->groups, s->k, seen, row->stride, row->window, row->first, row->few, threads);
  }
  times(mixed, w->o, attended, wide, d);
  scumble_attention_tail(x, attended, w->attention_norm, w->mlp_norm, w->experts_norm, h, for_mlp, for_experts, n, d,
                         eps, threads);

  bf16 *gate = take(s->mlp), *up = take(s->mlp), *dense = take(d), *sparse = take(d);
  times(for_mlp, w->gate, gate, d, s->mlp);
  times(for_mlp, w->up, up, d, s->mlp);
  scumble_geglu(gate, up, gate, n * s->mlp, threads);
  times(gate, w->down, dense, s->mlp, d);

  float *scores = room.take<float>(n * s->experts), *shares = room.take<float>(n * s->chosen);
  int64_t* chosen = room.take<int64_t>(n * s->chosen);
  bf16* slots = take(s->chosen * d);
  scumble_router(h, w->router_scale, w->router, w->per_expert, scores, shares, chosen, n, d, s->experts, s->chosen, eps,
                 threads);
  const Weight &a = w->experts_up, &b = w->experts_down;
  if (const FourExperts* f = (const FourExperts*)a.four)
    failed |= scumble_experts_four(padded_rows(for_experts, n, d, f->d, rounded.padded), shares, chosen, f->gate, f->up,
                                   f->down, (int8_t*)rounded.q, rounded.sums, rounded.scale, slots, sparse, n,
                                   s->chosen, s->experts, f->d, f->f, f->f_in, f->d_out, f->group, f->down_group,
                                   f->scales, f->table, f->zero_point, threads);
  else if (a.shift)
    failed |= scumble_experts_int8(for_experts, shares, chosen, a.panels, a.shift, a.scale, b.panels, b.shift, b.scale,
                                   slots, rounded.q, rounded.scale, sparse, n, s->chosen, s->experts, d, s->width, threads);
  else
    failed |= scumble_experts(for_experts, shares, chosen, a.panels, b.panels, nullptr, nullptr, slots, sparse, n,
                              s->chosen, s->experts, d, s->width, threads);
  uint8_t* encode = room.take<uint8_t>(n);  // no token is denoised
  std::memset(encode, 0, n);
  scumble_layer_tail(h, dense, sparse, w->after_mlp, w->after_experts, w->after_both, encode, w->denoise_scalar,
                     w->encode_scalar, out, n, d, eps, threads);
  return failed;
}

// Sizes in bytes of what this file and vocab.cpp share with Python by position; asked for when the library is loaded.
extern "C" int64_t scumble_layer_weights_size() { return sizeof(Weights); }
extern "C" int64_t scumble_layer_sizes_size() { return sizeof(Sizes); }
extern "C" int64_t scumble_layer_row_size() { return sizeof(Row); }
extern "C" int64_t scumble_four_weight_size() { return sizeof(FourWeight); }
extern "C" int64_t scumble_four_experts_size() { return sizeof(FourExperts); }
