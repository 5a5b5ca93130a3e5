// Products of packed weights with a few rows or many rows of activations. The layout is drawn in pack.py.
//
// For one row of weights and one row of activations, split into blocks b of 32 or 64 columns inside a group g:
//
//     y = Σ_b s_g · s_b · (Σ_k q_k a_k - z_g · Σ_k a_k)      w = s_g (q - z_g),   x ≈ s_b a with int8 a
//
// Pairs of columns (quantized/pairs.py) have a book of whole numbers in place of q - z: w = s_g e with e from -127 to 127,
// which is summed as e + 128 with 128 for z.
//
// The inner sums are exact integers, and blocks are added in the same order for any number of rows: what a row yields
// does not depend on what else is computed with it.
#pragma once
#include <algorithm>
#include <vector>

#include "simd.h"

struct Matrix {
  const uint8_t* data;
  const float* bias;    // [rows], or null
  const uint8_t* book;  // of pairs: 128 + the first of each of 64 pairs, then 128 + the second; null for other grids
  // bits: as stored, 16 for bfloat16. block: columns whose activations share a scale.
  // first, step: a stored byte c is the zero point first + step · c; with step 0 none are stored and all are `first`.
  int32_t rows, columns, bits, group_size, block;
  float first, step;
};
constexpr int TILE = 16, UNIT = 32;

inline long padded(const Matrix& m) {
  return m.bits == 16 ? m.columns : (m.columns + m.block - 1) / m.block * (long)m.block;
}
inline long groups(const Matrix& m) { return (m.columns + m.group_size - 1) / m.group_size; }
inline long header(const Matrix& m) {
  return m.bits == 16 ? 0 : (groups(m) * TILE * (m.step != 0 || m.book ? 3 : 2) + 63) / 64 * 64;
}
inline long tile_bytes(const Matrix& m) { return header(m) + padded(m) * TILE * m.bits / 8; }
inline long tiles(const Matrix& m) { return (m.rows + TILE - 1) / TILE; }

// Activations as products read them: rows in panels of at most WIDEST, four columns of each row side by side.
struct Inputs {
  int rows = 0, columns = 0, block = 0;  // block 16 stands for plain floats
  std::vector<int8_t> codes;
  std::vector<float> scales, sums, plain;

  static int width_of(int rows) {
    int width = 1;
    while (width < rows && width < 16) width *= 2;
    return rows > width ? WIDEST : width;
  }
  int panels() const { return (rows + WIDEST - 1) / WIDEST; }
  int width(int panel) const { return width_of(std::min(WIDEST, rows - panel * WIDEST)); }
  int filled(int panel) const { return std::min(WIDEST, rows - panel * WIDEST); }
  long padded() const { return (columns + block - 1) / block * (long)block; }
  long blocks() const { return padded() / block; }

  void shape(int rows_, int columns_, int block_) {
    rows = rows_, columns = columns_, block = block_;
    const size_t room = (size_t)panels() * WIDEST;
    if (block == 16) {
      plain.resize(std::max(plain.size(), room * columns));
      return;
    }
    codes.resize(std::max(codes.size(), room * padded()));
    scales.resize(std::max(scales.size(), room * blocks()));
    sums.resize(std::max(sums.size(), room * blocks()));
  }

  // Take row `row`: x [columns], readable up to the next multiple of 64, where what lies beyond is not looked at.
  void take(int row, const float* x) {
    const int panel = row / WIDEST, place = row % WIDEST, w = width(panel);
    if (block == 16) {
      float* to = plain.data() + (long)panel * WIDEST * columns + place;
      for (int c = 0; c < columns; c++) to[(long)c * w] = x[c];
      return;
    }
    int8_t* to = codes.data() + panel * WIDEST * padded() + 4 * place;
    const long at = panel * WIDEST * blocks() + place;
    for (long b = 0; b < blocks(); b++)
      quantize(x + b * block, (int)std::min<long>(block, columns - b * block), to + b * block * w, w, at + b * w);
  }

 private:
  // One block: a = round(127 x / max |x|), s = max |x| / 127
  void quantize(const float* x, int count, int8_t* to, int w, long at) {
    F values[4], top = set1(0);
    for (int i = 0; i < block / 16; i++) {
      values[i] = keep_first(load(x + 16 * i), std::max(0, count - 16 * i), 0.0f);
      top = maximum(top, magnitude(values[i]));
    }
    const float most = highest(top);
    const F inverse = set1(most > 0 ? 127.0f / most : 0.0f);
    alignas(64) int8_t found[64];
    F total = set1(0);
    for (int i = 0; i < block / 16; i++) {
      const F code = nearest(mul(values[i], inverse));
      total = add(total, code);
      store_i8(found + 16 * i, code);
    }
    scales[at] = most / 127.0f, sums[at] = sum(total);
    if (w == 1) {
      std::memcpy(to, found, block);
      return;
    }
    for (int i = 0; i < block / 4; i++) std::memcpy(to + (long)4 * i * w, found + 4 * i, 4);
  }
};

// Call body(step, codes) for the eight steps of a unit: each has four columns of sixteen rows, one byte a code.
template <int BITS, class Body> __attribute__((always_inline)) inline void unpack(const uint8_t* p, Body&& body) {
  if constexpr (BITS == 8) {
    UNROLL for (int i = 0; i < 8; i++) body(i, bytes(p + 64 * i));
  } else if constexpr (BITS == 4) {
    UNROLL for (int i = 0; i < 4; i++) {
      const B b = bytes(p + 64 * i);
      body(2 * i, both(b, fill(15)));
      body(2 * i + 1, both(right<4>(b), fill(15)));
    }
  } else {
    const B high = BITS == 3 ? bytes(p + 128) : fill(0), three = fill(3), four = fill(4);
    const auto with = [&](B low, B shifted) { return BITS == 3 ? either(low, both(shifted, four)) : low; };
    const B a = bytes(p), b = bytes(p + 64);
    body(0, with(both(a, three), left<2>(high)));
    body(1, with(both(right<2>(a), three), left<1>(high)));
    body(2, with(both(right<4>(a), three), high));
    body(3, with(both(right<6>(a), three), right<1>(high)));
    body(4, with(both(b, three), right<2>(high)));
    body(5, with(both(right<2>(b), three), right<3>(high)));
    body(6, with(both(right<4>(b), three), right<4>(high)));
    body(7, with(both(right<6>(b), three), right<5>(high)));
  }
}

// The same for pairs at 2 bits: two neighbouring steps are the halves of pairs whose numbers are nibbles. `books` holds
// 16 times the number of each row's book.
template <class Body>
__attribute__((always_inline)) inline void unpack_pairs(const uint8_t* p, const Pairs& pairs, B books, Body&& body) {
  UNROLL for (int i = 0; i < 2; i++) {
    const B b = bytes(p + 64 * i), low = either(both(b, fill(15)), books), high = either(both(right<4>(b), fill(15)), books);
    body(4 * i, pick(pairs.first, low)), body(4 * i + 1, pick(pairs.second, low));
    body(4 * i + 2, pick(pairs.first, high)), body(4 * i + 3, pick(pairs.second, high));
  }
}

constexpr int AHEAD = 2048;  // bytes that are fetched before they are needed, where one row streams the weights

// What every tile of a matrix needs to know, worked out once.
struct View {
  const Matrix& m;
  const long groups, header, tile_bytes, blocks;
  const int block, per_group;
  explicit View(const Matrix& m)
      : m(m), groups(::groups(m)), header(::header(m)), tile_bytes(::tile_bytes(m)),
        blocks(m.bits == 16 ? 0 : padded(m) / m.block), block(m.block), per_group((m.group_size + m.block - 1) / m.block) {}
};

// One tile of sixteen rows times the T rows of a panel: out [T][16]
template <int BITS, int T, bool PAIRS = false>
void tile(const View& v, long index, const Inputs& in, int panel, float* out) {
  constexpr int CHAINS = T >= 4 ? 1 : 4 / T;  // sums that don't wait for one another
  const uint8_t* body = v.m.data + index * v.tile_bytes;
  const uint16_t* scale = (const uint16_t*)body;
  const uint8_t* zero = body + v.groups * TILE * 2;
  body += v.header;
  const int8_t* a = in.codes.data() + panel * WIDEST * v.blocks * v.block;
  const float* scales = in.scales.data() + panel * WIDEST * v.blocks;
  const float* sums = in.sums.data() + panel * WIDEST * v.blocks;
  const F first = set1(v.m.first), step = set1(v.m.step);
  F total[T], s = set1(0), z = first;
  UNROLL for (int t = 0; t < T; t++) total[t] = set1(0);
  [[maybe_unused]] Pairs pairs{};
  [[maybe_unused]] B books = fill(0);
  if constexpr (PAIRS) pairs = {table(v.m.book), table(v.m.book + 64)};
  int left = 0;  // blocks until the next group
  for (long b = 0; b < v.blocks; b++, scales += T, sums += T) {
    if constexpr (PAIRS)
      if (left == 0) books = sixteenfold(zero), zero += TILE;
    I acc[CHAINS][T];
    UNROLL for (auto& chain : acc)
      UNROLL for (I& one : chain) one = zero_i();
    for (int u = 0; u < v.block; u += UNIT, body += 64 * BITS, a += UNIT * T) {
      if constexpr (T == 1)
        for (int i = 0; i < BITS; i++) __builtin_prefetch(body + AHEAD + 64 * i);
      const auto add = [&](int step, B codes) __attribute__((always_inline)) {
        UNROLL for (int t = 0; t < T; t++)
          acc[step % CHAINS][t] = dot<(BITS > 4 || PAIRS)>(acc[step % CHAINS][t], codes, a + 4 * (step * T + t));
      };
      if constexpr (PAIRS) unpack_pairs(body, pairs, books, add);
      else unpack<BITS>(body, add);
    }
    if (left-- == 0) {
      s = load_bf16(scale), scale += TILE, left = v.per_group - 1;
      if (v.m.step != 0) z = fma(load_u8(zero), step, first), zero += TILE;
    }
    UNROLL for (int t = 0; t < T; t++) {
      UNROLL for (int c = 1; c < CHAINS; c++) acc[0][t] = add_i(acc[0][t], acc[c][t]);
      const F exact = fnma(z, set1(sums[t]), to_float(acc[0][t]));  // halves below 2**23, so nothing is rounded
      total[t] = fma(exact, mul(s, set1(scales[t])), total[t]);
    }
  }
  UNROLL for (int t = 0; t < T; t++) store(out + TILE * t, total[t]);
}

// The same for bfloat16 weights and float activations
template <int T> void tile_plain(const View& v, long index, const Inputs& in, int panel, float* out) {
  const uint16_t* w = (const uint16_t*)(v.m.data + index * v.tile_bytes);
  const float* x = in.plain.data() + (long)panel * WIDEST * in.columns;
  F total[T];
  UNROLL for (int t = 0; t < T; t++) total[t] = set1(0);
  for (long c = 0; c < v.m.columns; c++, w += TILE, x += T)
    UNROLL for (int t = 0; t < T; t++) total[t] = fma(load_bf16(w), set1(x[t]), total[t]);
  UNROLL for (int t = 0; t < T; t++) store(out + TILE * t, total[t]);
}

template <int T> void any_tile(const View& v, long index, const Inputs& in, int panel, float* out) {
  if (v.m.book) return tile<2, T, true>(v, index, in, panel, out);
  switch (v.m.bits) {
    case 2: return tile<2, T>(v, index, in, panel, out);
    case 3: return tile<3, T>(v, index, in, panel, out);
    case 4: return tile<4, T>(v, index, in, panel, out);
    case 16: return tile_plain<T>(v, index, in, panel, out);
    default: return tile<8, T>(v, index, in, panel, out);
  }
}

inline void run_tile(const View& v, long index, const Inputs& in, int panel, float* out) {
  switch (in.width(panel)) {
    case 1: return any_tile<1>(v, index, in, panel, out);
    case 2: return any_tile<2>(v, index, in, panel, out);
    case 4: return any_tile<4>(v, index, in, panel, out);
#if defined(__AVX512VNNI__)
    case 8: return any_tile<8>(v, index, in, panel, out);
    case 16: return any_tile<16>(v, index, in, panel, out);
#endif
    default: return any_tile<WIDEST>(v, index, in, panel, out);
  }
}
