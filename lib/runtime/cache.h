// Where keys and values lie, with 16, 8 or 4 bits a number, and how they are put there.
//
// 16 bits are bfloat16: keys in groups of sixteen positions, [position / 16][size][16], values as [position][size].
//
// With 8 and 4 bits the key and the value of a head at a position have a grid each, x ≈ scale · code + least. Both
// numbers are bfloat16, rounded outwards, so that the codes reach to either end: [position / 16][2][16]. Codes of keys
// lie as [position / 16][size / 4][16][4] bytes, where an integer product takes four numbers of sixteen positions; of
// values as [position][size]. With 4 bits a byte holds two of them: of each eight numbers of a key, number i and i + 4
// (the upper half); of each thirty-two of a value, number i and i + 16, its size rounded up to that. The
// keys have been turned by then (see `turn`), which spreads over a whole head what sticks out of it; values need no such.
#pragma once
#include <algorithm>

#include "simd.h"

struct Cache {
  uint8_t *keys, *values;               // [layers, slots, key heads, capacity, bytes of a position]
  uint16_t *key_grids, *value_grids;    // [layers, slots, key heads, capacity / 16, 2, 16]; none with 16 bits
  const float *cosine, *sine;           // [rotary embeddings, capacity, rotated / 2]
  int64_t capacity;                     // a multiple of 16
  int32_t slots, bits;
};

struct Head {  // keys and values of one head in one slot
  uint8_t *keys, *values;
  uint16_t *key_grids, *value_grids;
};

inline long key_bytes(int bits, int size) { return (long)size * bits / 8; }
inline long value_bytes(int bits, int size) { return bits == 4 ? (size + 31) / 32 * 16L : key_bytes(bits, size); }

inline Head head_of(const Cache& c, int layer, int slot, int head, int key_heads, int size) {
  const long first = (((long)layer * c.slots + slot) * key_heads + head) * c.capacity;
  const long grids = c.bits == 16 ? 0 : 2 * first;
  return {c.keys + first * key_bytes(c.bits, size), c.values + first * value_bytes(c.bits, size),
          c.key_grids + grids, c.value_grids + grids};
}

// x := H x with Walsh and Hadamard's matrix of the largest power of two that divides the size, block by block. H is its
// own inverse, and queries that are turned too have the same products with keys as before (QuaRot, arXiv 2404.00456).
inline void turn(float* x, int size) {
  const int block = size & -size;
  for (int half = 1; half < block; half *= 2)
    for (int first = 0; first < size; first += 2 * half)
      for (int i = first; i < first + half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b, x[i + half] = a - b;
      }
  const float length = 1.0f / std::sqrt((float)block);
  for (int i = 0; i < size; i++) x[i] *= length;
}

inline float from_bf16(uint16_t a) {
  const uint32_t bits = (uint32_t)a << 16;
  float found;
  std::memcpy(&found, &bits, 4);
  return found;
}
// The nearest bfloat16 that is not above `a`, or with `up` not below it
inline uint16_t outwards(float a, bool up) {
  uint32_t bits;
  std::memcpy(&bits, &a, 4);
  return (uint16_t)((bits + ((bits >> 31 != 0) != up ? 0xffff : 0)) >> 16);
}

// The grid of `size` numbers (a multiple of 16) with codes from 0 to `top`
struct Codes {
  uint16_t scale, least;
  F first, inverse, top;

  Codes(const float* x, int size, float most) : top(set1(most)) {
    F high = load(x), low = sub(set1(0), high);
    for (int i = 16; i < size; i += 16) high = maximum(high, load(x + i)), low = maximum(low, sub(set1(0), load(x + i)));
    least = outwards(-highest(low), false), first = set1(from_bf16(least));
    scale = outwards((highest(high) - from_bf16(least)) / most, true);
    const float step = from_bf16(scale);
    inverse = set1(step > 0 ? 1.0f / step : 0.0f);
  }
  void take(const float* x, uint8_t* out) const {  // sixteen codes
    const F code = nearest(mul(sub(load(x), first), inverse));
    store_i8((int8_t*)out, minimum(maximum(code, set1(0)), top));  // its lowest byte, which is the code
  }
  void note(uint16_t* grids, long position) const {
    uint16_t* at = grids + position / 16 * 32 + position % 16;
    at[0] = scale, at[16] = least;
  }
};

template <int BITS> void keep_codes(const float* key, const float* value, const Head& to, long position, int size) {
  constexpr int MOST = (1 << BITS) - 1;
  alignas(16) uint8_t codes[32] = {};
  const Codes of_key(key, size, MOST), of_value(value, size, MOST);
  of_key.note(to.key_grids, position), of_value.note(to.value_grids, position);
  uint8_t* k = to.keys + position / 16 * 16 * key_bytes(BITS, size) + position % 16 * 4;
  uint8_t* v = to.values + position * value_bytes(BITS, size);
  for (int i = 0; i < size; i += 16) {
    of_key.take(key + i, codes);
    if constexpr (BITS == 8)
      for (int j = 0; j < 16; j += 4) std::memcpy(k + (i + j) * 16, codes + j, 4);
    else
      for (int j = 0; j < 16; j++)
        if (j % 8 < 4) k[(i / 8 + j / 8) * 64 + j % 4] = codes[j] | codes[j + 4] << 4;
  }
  for (int i = 0; i < size; i += BITS == 8 ? 16 : 32) {
    of_value.take(value + i, codes);
    if constexpr (BITS == 8) {
      std::memcpy(v + i, codes, 16);
      continue;
    }
    if (i + 16 < size) of_value.take(value + i + 16, codes + 16);
    for (int j = 0; j < 16; j++) v[i / 2 + j] = codes[j] | (i + 16 < size ? codes[j + 16] << 4 : 0);
  }
}

// Store a position's key and value [size]; the key is turned in place where the cache wants that.
inline void keep(int bits, float* key, const float* value, const Head& to, long position, int size) {
  if (bits == 8) return keep_codes<8>(key, value, to, position, size);
  if (bits == 4) {
    turn(key, size);
    return keep_codes<4>(key, value, to, position, size);
  }
  uint16_t* k = (uint16_t*)to.keys + position / 16 * 16 * size + position % 16;
  uint16_t* v = (uint16_t*)to.values + position * size;
  for (int i = 0; i < size; i++) k[16 * i] = to_bf16(key[i]), v[i] = to_bf16(value[i]);
}
