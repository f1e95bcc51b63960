// Linear layers and experts with weights of four bits (four_bit.h).
#include <algorithm>

#include "four_bit.h"
#include "groups.h"
#include "guard.h"

extern "C" {

// x bfloat16 [n, k]; weight as in four_bit.h, [columns, k]; q, sums, row_scale: room for [n, k], [n, k / group], [n];
// out bfloat16 [n, columns].
int scumble_linear_four(const bf16* x, const uint8_t* packed, const uint8_t* scale, const float* zero,
                        const float* factor, int8_t* q, int32_t* sums, float* row_scale, bf16* out, int64_t n,
                        int64_t k, int64_t columns, int64_t group, int64_t scales, int64_t table, int64_t zero_point,
                        int threads) {
  const FourKind kind{group, (int)scales, (int)table, (int)zero_point};
  const FourBits weight{packed, scale, zero, factor};
  const FourRows rows{q, sums, k, k / group};
  Guard guard;
#pragma omp parallel for num_threads(threads) if (n * k > 65536)
  for (int64_t row = 0; row < n; row++)
    row_scale[row] = four_quantize(x + row * k, k, group, q + row * k, sums + row * (k / group));
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (n * columns * k > 65536)
  for (int64_t c = 0; c < columns; c += PANEL) guard([&] {
      static thread_local FourRoom own;
      static thread_local std::vector<float> sum;
      float* t = room(sum, n * PANEL);
      four_product(rows, n, weight, kind, c, columns, t, own);
      for (int64_t row = 0; row < n; row++)
        for (int64_t j = 0; j < PANEL && c + j < columns; j += 16)
          store(out + row * columns + c + j, tail_mask(columns - c - j),
                mul(load(t + row * PANEL + j), floats(row_scale[row])));
    });
  return guard.result();
}

// Experts: `gate`, `up` and `down` are arrays of FourBits, one an expert ([f, d], [f, d], [d_out, f_in]). Otherwise as
// scumble_experts; q, sums, row_scale: room for x's rows in int8. d and f_in are d_out and f up to whole groups (`group`,
// `down_group`); x is padded with zeros.
int scumble_experts_four(const bf16* x, const float* weights, const int64_t* chosen, const FourBits* gate,
                         const FourBits* up, const FourBits* down, int8_t* q, int32_t* sums, float* row_scale,
                         bf16* slots, bf16* out, int64_t n, int64_t k, int64_t experts, int64_t d, int64_t f,
                         int64_t f_in, int64_t d_out, int64_t group, int64_t down_group, int64_t scales,
                         int64_t table, int64_t zero_point, int threads) {
  const FourKind kind{group, (int)scales, (int)table, (int)zero_point};
  const FourKind down_kind{down_group, (int)scales, (int)table, (int)zero_point};
  const int64_t gs = d / group, hs = f_in / down_group;
  Guard guard;
  guard([&] {
    Groups groups(chosen, n * k, experts);
#pragma omp parallel for num_threads(threads) if (n * d > 65536)
    for (int64_t row = 0; row < n; row++)
      row_scale[row] = four_quantize(x + row * d, d, group, q + row * d, sums + row * gs);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t e = 0; e < experts; e++) guard([&] {
        const int64_t rows = groups.begin[e + 1] - groups.begin[e];
        if (rows == 0) return;
        static thread_local FourRoom own;
        static thread_local std::vector<int8_t> gathered, narrow_hidden;
        static thread_local std::vector<int32_t> gathered_sums, hidden_sums;
        static thread_local std::vector<float> hidden, first, second, scale;
        int8_t *a = room(gathered, rows * d), *b = room(narrow_hidden, rows * f_in);
        int32_t *as = room(gathered_sums, rows * gs), *bs = room(hidden_sums, rows * hs);
        float *h = room(hidden, rows * f_in), *s = room(scale, rows);
        float *t = room(first, rows * PANEL), *u = room(second, rows * PANEL);
        for (int64_t r = 0; r < rows; r++) {
          const int64_t token = groups.slots[groups.begin[e] + r] / k;
          std::memcpy(a + r * d, q + token * d, d);
          std::memcpy(as + r * gs, sums + token * gs, gs * sizeof(int32_t));
          s[r] = row_scale[token];
        }
        const FourRows inputs{a, as, d, gs}, middles{b, bs, f_in, hs};
        for (int64_t r = 0; r < rows; r++) std::fill(h + r * f_in + f, h + (r + 1) * f_in, 0.0f);
        for (int64_t c = 0; c < f; c += PANEL) {
          four_product(inputs, rows, gate[e], kind, c, f, t, own);
          four_product(inputs, rows, up[e], kind, c, f, u, own);
          for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < PANEL && c + j < f; j += 16) {
              const Floats x_scale = floats(s[r]);
              const Floats g = mul(load(t + r * PANEL + j), x_scale);
              const Floats v = mul(load(u + r * PANEL + j), x_scale);
              store(h + r * f_in + c + j, tail_mask(f - c - j), mul(gelu16(g), v));
            }
        }
        for (int64_t r = 0; r < rows; r++) s[r] = four_quantize(h + r * f_in, f_in, down_group, b + r * f_in, bs + r * hs);
        for (int64_t c = 0; c < d_out; c += PANEL) {
          four_product(middles, rows, down[e], down_kind, c, d_out, t, own);
          for (int64_t r = 0; r < rows; r++) {
            bf16* to = slots + groups.slots[groups.begin[e] + r] * d_out;
            for (int64_t j = 0; j < PANEL && c + j < d_out; j += 16)
              store(to + c + j, tail_mask(d_out - c - j),
                    mul(load(t + r * PANEL + j), floats(s[r])));
          }
        }
      });
    if (!guard.result()) combine(slots, weights, out, n, k, d_out, threads);
  });
  return guard.result();
}

// x [rows, columns] rounded to four bits: the number of largest magnitude in a group becomes -8, the others the nearest of
// -8 … 7 of its scale. packed [rows, columns / 2]; scale [rows, columns / group]. group: a multiple of 16 that divides columns.
void scumble_quantize_four(const bf16* x, uint8_t* packed, bf16* scale, int64_t rows, int64_t columns, int64_t group,
                           int threads) {
  const Bytes pairs = _mm_set1_epi16(0x1001);  // the odd number is sixteen times as much
#pragma omp parallel for num_threads(threads) if (rows * columns > 65536)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t g = 0; g < columns / group; g++) {
      const bf16* from = x + row * columns + g * group;
      Floats high = floats(0);
      for (int64_t i = 0; i < group; i += 16) high = max(high, abs(load(from + i)));
      const Floats most = floats(reduce_max(high));
      bf16 extreme = 0;
      for (int64_t i = 0; i < group; i += 16) {
        Mask there = equal(ALL, abs(load(from + i)), most);
        if (there) {
          extreme = from[i + __builtin_ctz(there)];
          break;
        }
      }
      uint32_t bits = (uint32_t)extreme << 16;
      float value;
      std::memcpy(&value, &bits, 4);
      value /= -8.0f;  // exact in bfloat16 but for the very smallest
      Floats step = rounded(floats(value));
      store(scale + row * (columns / group) + g, 1, step);
      step = select(equal(ALL, step, floats(0)), floats(1.0f), step);
      for (int64_t i = 0; i < group; i += 16) {
        Ints n = to_ints(div(load(from + i), step));
        n = min(max(n, ints(-8)), ints(7));
        Bytes bytes = low_bytes(add(n, ints(8)));
        Bytes words = _mm_maddubs_epi16(bytes, pairs);
        _mm_storel_epi64((__m128i*)(packed + (row * columns + g * group + i) / 2), _mm_packus_epi16(words, words));
      }
    }
}
}
