// Attention of a few query vectors that share their keys and values, and what stands around it: norms and RoPE.
//
// Keys lie in groups of sixteen positions, [position / 16][size][16], values as [position][size], both in bfloat16: so
// scores and weighted sums need no sum over lanes. Scores beyond a query's own position count nothing, and every query
// adds in the same order alone or with others.
#pragma once
#include "products.h"

struct Cache {
  uint16_t *keys, *values;     // [layers, slots, key heads, capacity * size]
  const float *cosine, *sine;  // [capacity, size / 2]
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

// Rotary embedding in place (arXiv 2104.09864, equation 34, with the halves that Llama uses for pairs)
inline void rotate(float* x, const float* cosine, const float* sine, int size) {
  const int half = size / 2;
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
  const float* vector;  // [size], already divided by sqrt(size)
  float* out;           // [size]
  long positions;       // how many positions it sees
};

// How many of a block's sixteen positions a query sees
inline int seen(const Query& query, long block) { return (int)std::clamp<long>(query.positions - 16 * block, 0, 16); }

// scores [blocks][R][16] = q Kᵀ, with `top` the highest of each query by lane; q [size][R]
template <int R>
void score(const Query* queries, const float* q, const uint16_t* keys, int size, long blocks, float* scores, F* top) {
  for (long b = 0; b < blocks; b++) {
    F acc[R];
    UNROLL for (int r = 0; r < R; r++) acc[r] = set1(0);
    const uint16_t* k = keys + b * 16 * size;
    for (int i = 0; i < size; i++) {
      const F key = load_bf16(k + 16 * i);
      UNROLL for (int r = 0; r < R; r++) acc[r] = fma(key, set1(q[i * R + r]), acc[r]);
    }
    UNROLL for (int r = 0; r < R; r++) {
      acc[r] = keep_first(acc[r], seen(queries[r], b), -INFINITY);
      top[r] = maximum(top[r], acc[r]);
      store(scores + (b * R + r) * 16, acc[r]);
    }
  }
}

// softmax(q Kᵀ) V for R queries. room: floats [(longest / 16 + 1) * 16 * R + R * size]
template <int R> void attend(const Query* queries, const uint16_t* keys, const uint16_t* values, int size, float* room) {
  long longest = 0;
  for (int r = 0; r < R; r++) longest = std::max(longest, queries[r].positions);
  float *q = room, *scores = room + (long)R * size;
  for (int i = 0; i < size; i++)
    for (int r = 0; r < R; r++) q[i * R + r] = queries[r].vector[i];
  F top[R];
  float total[R];
  for (int r = 0; r < R; r++) top[r] = set1(-INFINITY);
  const long blocks = (longest + 15) / 16;
  score<R>(queries, q, keys, size, blocks, scores, top);
  for (int r = 0; r < R; r++) {
    const F high = set1(highest(top[r]));
    F lanes = set1(0);
    for (long b = 0; b < blocks; b++) {
      float* s = scores + (b * R + r) * 16;
      const F p = keep_first(exponential(sub(load(s), high)), seen(queries[r], b), 0.0f);
      lanes = add(lanes, p);
      store(s, p);
    }
    total[r] = sum(lanes);
  }
  for (int i = 0; i < size; i += 16) {
    F acc[R];
    UNROLL for (int r = 0; r < R; r++) acc[r] = set1(0);
    for (long p = 0; p < longest; p++) {
      const F value = load_bf16(values + p * size + i);
      const float* s = scores + p / 16 * 16 * R + p % 16;
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
