// Attention of a few query vectors that share their keys and values, and what stands around it: norms and RoPE.
//
// Scores and weighted sums need no sum over lanes, as keys lie in groups of sixteen positions and values number by
// number. Positions after a query's own, and before its window, count nothing, and every query adds in the same order
// alone or with others: within a part of `PART` positions, and then part after part.
#pragma once
#include "cache.h"
#include "products.h"

constexpr int AT_ONCE = 12;  // query vectors
constexpr long PART = 1024;  // positions

// y = x / sqrt(mean x² + eps) · w (arXiv 1910.07467, equation 4)
inline void rms_norm(const float* x, const float* w, float* y, int size, float eps) {
  float squares = 0;
  int i = 0;
  F lanes = set1(0);
  for (; i + 16 <= size; i += 16) lanes = fma(load(x + i), load(x + i), lanes);
  squares = sum(lanes);
  for (; i < size; i++) squares += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(squares / size + eps);
  for (i = 0; i + 16 <= size; i += 16) store(y + i, mul(mul(load(x + i), set1(scale)), load(w + i)));
  for (; i < size; i++) y[i] = x[i] * scale * w[i];
}

// Rotary embedding of the first `rotated` numbers in place (arXiv 2104.09864, equation 34, with the halves that Llama
// uses for pairs)
inline void rotate(float* x, const float* cosine, const float* sine, int rotated) {
  const int half = rotated / 2;
  for (int i = 0; i < half; i++) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cosine[i] - b * sine[i];
    x[i + half] = b * cosine[i] + a * sine[i];
  }
}

struct Query {
  const float* vector;  // [size], already scaled
  float* out;           // [size]
  long first, last;     // it sees the positions from `first` to `last` - 1
};

// What a query has read of a part: its highest score, the sum of exp(score - highest), and the values so weighted
struct Partial {
  float highest, total, unused[14], sums[];
  static long stride(int size) { return 16 + (size + 31) / 32 * 32; }  // floats
};

// The lanes of a block of sixteen positions that a query sees; the others become `other`
inline F keep_seen(F a, const Query& query, long block, float other) {
  const auto lane = [&](long position) { return (int)std::clamp<long>(position - 16 * block, 0, 16); };
  return drop_first(keep_first(a, lane(query.last), other), lane(query.first), other);
}

// R queries as products with keys read them: floats [size][R] for keys of 16 bits; for codes whole numbers of 15 bits,
// x ≈ step · (128 · high + low), each of both as bytes [size / 4][R][4].
template <int R> struct Asked {
  float* plain;
  int8_t *high, *low;
  float step[R], total[R];

  template <int BITS> void take(const Query* queries, int size, float* room) {
    plain = room, high = (int8_t*)room, low = high + (long)R * size;
    for (int r = 0; r < R; r++) {
      const float* x = queries[r].vector;
      if constexpr (BITS == 16)
        for (int i = 0; i < size; i++) plain[i * R + r] = x[i];
      else split(x, size, r);
    }
  }

 private:
  void split(const float* x, int size, int r) {
    F top = set1(0), lanes = set1(0);
    for (int i = 0; i < size; i += 16) top = maximum(top, magnitude(load(x + i)));
    const float most = ::highest(top);
    const F inverse = set1(most > 0 ? 16256.0f / most : 0.0f);
    alignas(16) int8_t upper[16], lower[16];
    for (int i = 0; i < size; i += 16) {
      const F whole = nearest(mul(load(x + i), inverse)), half = nearest(mul(whole, set1(1.0f / 128)));
      store_i8(upper, half), store_i8(lower, fnma(half, set1(128), whole));
      lanes = add(lanes, whole);
      for (int j = 0; j < 16; j += 4) {
        std::memcpy(high + ((i + j) / 4 * R + r) * 4, upper + j, 4);
        std::memcpy(low + ((i + j) / 4 * R + r) * 4, lower + j, 4);
      }
    }
    step[r] = most / 16256, total[r] = step[r] * sum(lanes);
  }
};

// Products [R] of queries with a block of sixteen keys
template <int BITS, int R> __attribute__((always_inline)) inline
void block_products(const Asked<R>& q, const uint8_t* k, const uint16_t* grid, int size, F* found) {
  if constexpr (BITS == 16) {
    UNROLL for (int r = 0; r < R; r++) found[r] = set1(0);
    for (int i = 0; i < size; i++) {
      const F key = load_bf16((const uint16_t*)k + 16 * i);
      UNROLL for (int r = 0; r < R; r++) found[r] = fma(key, set1(q.plain[i * R + r]), found[r]);
    }
  } else {
    I high[R], low[R];
    UNROLL for (int r = 0; r < R; r++) high[r] = low[r] = zero_i();
    const auto four = [&](int unit, B codes) __attribute__((always_inline)) {
      UNROLL for (int r = 0; r < R; r++) {
        high[r] = dot<BITS == 8>(high[r], codes, q.high + (unit * R + r) * 4);
        low[r] = dot<BITS == 8>(low[r], codes, q.low + (unit * R + r) * 4);
      }
    };
    for (int unit = 0; unit < size / 4; unit += 8 / BITS, k += 64) {
      const B codes = bytes(k);
      four(unit, BITS == 8 ? codes : both(codes, fill(15)));
      if constexpr (BITS == 4) four(unit + 1, both(right<4>(codes), fill(15)));
    }
    const F scale = load_bf16(grid), least = load_bf16(grid + 16);
    UNROLL for (int r = 0; r < R; r++) {
      const F exact = fma(to_float(high[r]), set1(128), to_float(low[r]));
      found[r] = fma(mul(exact, scale), set1(q.step[r]), mul(least, set1(q.total[r])));
    }
  }
}

// The weighted sums of C times sixteen numbers of the values, from number `from` on; weights [blocks][R][16]
template <int BITS, int R, int C> __attribute__((always_inline)) inline
void sum_values(const Head& head, int size, int from, long first, long last, const float* weights, const F* more,
                float* partials) {
  F acc[C][R];
  UNROLL for (int c = 0; c < C; c++)
    UNROLL for (int r = 0; r < R; r++) acc[c][r] = set1(0);
  const long row = value_bytes(BITS, size), begin = first / 16;
  const uint8_t* v = head.values + first * row + (long)from * BITS / 8;
  for (long p = first; p < last; p++, v += row) {
    const float* w = weights + (p / 16 - begin) * 16 * R + p % 16;
    F value[C];
    UNROLL for (int c = 0; c < C; c++) {
      if constexpr (BITS == 16) value[c] = load_bf16((const uint16_t*)v + 16 * c);
      else if constexpr (BITS == 8) value[c] = load_u8(v + 16 * c);
      else value[c] = c % 2 ? load_upper(v + 8 * (c - 1)) : load_lower(v + 8 * c);
    }
    UNROLL for (int c = 0; c < C; c++)
      UNROLL for (int r = 0; r < R; r++) acc[c][r] = fma(value[c], set1(w[16 * r]), acc[c][r]);
  }
  UNROLL for (int c = 0; c < C; c++)
    UNROLL for (int r = 0; r < R; r++) {
      Partial* to = (Partial*)(partials + r * Partial::stride(size));
      store(to->sums + from + 16 * c, BITS == 16 ? acc[c][r] : add(acc[c][r], more[r]));
    }
}

// Scores [blocks][R][16] become weights, times the scales of values that have grids; more: the weighted `least` of those
template <int BITS, int R>
void weigh(const Query* queries, const Head& head, int size, long begin, long end, const F* top, float* scores, F* more,
           float* partials) {
  for (int r = 0; r < R; r++) {
    Partial* own = (Partial*)(partials + r * Partial::stride(size));
    const F high = set1(own->highest = highest(top[r]));
    F lanes = set1(0), least = set1(0);
    for (long b = begin; b < end; b++) {
      float* s = scores + ((b - begin) * R + r) * 16;
      F p = keep_seen(exponential(sub(load(s), high)), queries[r], b, 0.0f);
      lanes = add(lanes, p);
      if constexpr (BITS < 16) {
        const uint16_t* grid = head.value_grids + b * 32;
        least = fma(p, load_bf16(grid + 16), least);
        p = mul(p, load_bf16(grid));
      }
      store(s, p);
    }
    own->total = sum(lanes), more[r] = set1(sum(least));
  }
}

// What R queries read of one part: partials [R] `Partial::stride` floats apart. room: floats [R · (size + PART)]
template <int BITS, int R>
void read_part(const Query* queries, const Head& head, int size, long from, long to, float* room, float* partials) {
  long first = queries[0].first, last = queries[0].last;
  for (int r = 1; r < R; r++) first = std::min(first, queries[r].first), last = std::max(last, queries[r].last);
  first = std::max(first, from), last = std::min(last, to);
  const long begin = first / 16, end = (last + 15) / 16, block = 16 * key_bytes(BITS, size);
  Asked<R> q;
  q.template take<BITS>(queries, size, room);
  float* weights = room + (long)R * size;
  F top[R], more[R];
  for (int r = 0; r < R; r++) top[r] = set1(-INFINITY);
  for (long b = begin; b < end; b++) {
    F found[R];
    block_products<BITS>(q, head.keys + b * block, head.key_grids + b * 32, size, found);
    UNROLL for (int r = 0; r < R; r++) {
      found[r] = keep_seen(found[r], queries[r], b, -INFINITY);
      top[r] = maximum(top[r], found[r]);
      store(weights + ((b - begin) * R + r) * 16, found[r]);
    }
  }
  weigh<BITS, R>(queries, head, size, begin, end, top, weights, more, partials);
  constexpr int C = R <= 6 ? 4 : 2;  // registers decide
  const int width = BITS == 4 ? (size + 31) / 32 * 32 : size;
  int i = 0;
  for (; i + 16 * C <= width; i += 16 * C)
    sum_values<BITS, R, C>(head, size, i, first, last, weights, more, partials);
  if constexpr (C > 2)
    for (; i + 32 <= width; i += 32) sum_values<BITS, R, 2>(head, size, i, first, last, weights, more, partials);
  if constexpr (BITS != 4)
    for (; i < width; i += 16) sum_values<BITS, R, 1>(head, size, i, first, last, weights, more, partials);
}

template <int BITS, int R = AT_ONCE>
void read_part(int count, const Query* queries, const Head& head, int size, long from, long to, float* room,
               float* partials) {
  if constexpr (R > 0) {
    if (count == R) return read_part<BITS, R>(queries, head, size, from, to, room, partials);
    read_part<BITS, R - 1>(count, queries, head, size, from, to, room, partials);
  }
}
