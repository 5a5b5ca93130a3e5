// Attention of a few query vectors that share their keys and values, and what stands around it: norms and RoPE.
//
// Keys lie in groups of sixteen positions, [position / 16][size][16], values as [position][size], both in bfloat16: so
// scores and weighted sums need no sum over lanes. Positions after a query's own, and before its window, count nothing,
// and every query adds in the same order alone or with others.
#pragma once
#include "products.h"

struct Cache {
  uint16_t *keys, *values;     // [layers, slots, key heads, capacity * size]
  const float *cosine, *sine;  // [rotary embeddings, capacity, rotated / 2]
  int64_t capacity;            // a multiple of 16
  int32_t slots, unused;
};

constexpr int AT_ONCE = 12;  // query vectors

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

inline void keep(const float* key, const float* value, uint16_t* keys, uint16_t* values, long position, int size) {
  uint16_t* k = keys + position / 16 * 16 * size + position % 16;
  uint16_t* v = values + position * size;
  for (int i = 0; i < size; i++) k[16 * i] = to_bf16(key[i]), v[i] = to_bf16(value[i]);
}

struct Query {
  const float* vector;  // [size], already scaled
  float* out;           // [size]
  long first, last;     // it sees the positions from `first` to `last` - 1
};

// The lanes of a block of sixteen positions that a query sees; the others become `other`
inline F keep_seen(F a, const Query& query, long block, float other) {
  const auto lane = [&](long position) { return (int)std::clamp<long>(position - 16 * block, 0, 16); };
  return drop_first(keep_first(a, lane(query.last), other), lane(query.first), other);
}

// scores [blocks][R][16] = q Kᵀ from block `begin` on, with `top` the highest of each query by lane; q [size][R]
template <int R>
void score(const Query* queries, const float* q, const uint16_t* keys, int size, long begin, long end, float* scores,
           F* top) {
  for (long b = begin; b < end; b++) {
    F acc[R];
    UNROLL for (int r = 0; r < R; r++) acc[r] = set1(0);
    const uint16_t* k = keys + b * 16 * size;
    for (int i = 0; i < size; i++) {
      const F key = load_bf16(k + 16 * i);
      UNROLL for (int r = 0; r < R; r++) acc[r] = fma(key, set1(q[i * R + r]), acc[r]);
    }
    UNROLL for (int r = 0; r < R; r++) {
      acc[r] = keep_seen(acc[r], queries[r], b, -INFINITY);
      top[r] = maximum(top[r], acc[r]);
      store(scores + ((b - begin) * R + r) * 16, acc[r]);
    }
  }
}

// softmax(q Kᵀ) V for R queries. room: floats [(longest / 16 + 1) * 16 * R + R * size]
template <int R> void attend(const Query* queries, const uint16_t* keys, const uint16_t* values, int size, float* room) {
  long first = queries[0].first, last = queries[0].last;
  for (int r = 1; r < R; r++) first = std::min(first, queries[r].first), last = std::max(last, queries[r].last);
  const long begin = first / 16, end = (last + 15) / 16;
  float *q = room, *scores = room + (long)R * size;
  for (int i = 0; i < size; i++)
    for (int r = 0; r < R; r++) q[i * R + r] = queries[r].vector[i];
  F top[R];
  float total[R];
  for (int r = 0; r < R; r++) top[r] = set1(-INFINITY);
  score<R>(queries, q, keys, size, begin, end, scores, top);
  for (int r = 0; r < R; r++) {
    const F high = set1(highest(top[r]));
    F lanes = set1(0);
    for (long b = begin; b < end; b++) {
      float* s = scores + ((b - begin) * R + r) * 16;
      const F p = keep_seen(exponential(sub(load(s), high)), queries[r], b, 0.0f);
      lanes = add(lanes, p);
      store(s, p);
    }
    total[r] = sum(lanes);
  }
  for (int i = 0; i < size; i += 16) {
    F acc[R];
    UNROLL for (int r = 0; r < R; r++) acc[r] = set1(0);
    for (long p = first; p < last; p++) {
      const F value = load_bf16(values + p * size + i);
      const float* s = scores + (p / 16 - begin) * 16 * R + p % 16;
      UNROLL for (int r = 0; r < R; r++) acc[r] = fma(value, set1(s[16 * r]), acc[r]);
    }
    UNROLL for (int r = 0; r < R; r++) store(queries[r].out + i, divide(acc[r], set1(total[r])));
  }
}

template <int R = AT_ONCE>
void attend_all(int count, const Query* queries, const uint16_t* keys, const uint16_t* values, int size, float* room) {
  if constexpr (R > 0) {
    if (count == R) return attend<R>(queries, keys, values, size, room);
    attend_all<R - 1>(count, queries, keys, values, size, room);
  }
}
