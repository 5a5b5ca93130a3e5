// Sixteen lanes of float or int32, and sixty-four bytes: one set of names for AVX-512 VNNI, AVX2 and portable C++.
//
// Integer sums are exact on every path. Float operations are the same on every path too, except that a portable build
// rounds twice in `fma`, and exponentials and sums over lanes may differ in the last bit.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512VNNI__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define UNROLL _Pragma("GCC unroll 32")  // before loops over arrays that must live in registers

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr int WIDEST = 24;  // rows of activations that one pass over a tile of weights serves: registers decide

using F = __m512;
using I = __m512i;
using B = __m512i;

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a); }
inline F set1(float a) { return _mm512_set1_ps(a); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F divide(F a, F b) { return _mm512_div_ps(a, b); }
inline F maximum(F a, F b) { return _mm512_max_ps(a, b); }
inline F minimum(F a, F b) { return _mm512_min_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
inline F magnitude(F a) { return _mm512_abs_ps(a); }
inline float sum(F a) { return _mm512_reduce_add_ps(a); }
inline float highest(F a) { return _mm512_reduce_max_ps(a); }
inline F nearest(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F times_power(F a, F n) { return _mm512_scalef_ps(a, n); }  // a * 2**n
inline F load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline F load_u8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
// the lower and the upper halves of sixteen bytes
inline F load_lower(const uint8_t* p) {
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
  return _mm512_cvtepi32_ps(_mm512_and_si512(wide, _mm512_set1_epi32(15)));
}
inline F load_upper(const uint8_t* p) {
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
  return _mm512_cvtepi32_ps(_mm512_srli_epi32(wide, 4));
}
inline void store_i8(int8_t* p, F a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a))); }
// lanes from `count` on become `other`
inline F keep_first(F a, int count, float other) {
  return count >= 16 ? a : _mm512_mask_blend_ps((__mmask16)((1u << count) - 1), _mm512_set1_ps(other), a);
}
// lanes before `count` become `other`
inline F drop_first(F a, int count, float other) {
  return count <= 0 ? a : _mm512_mask_blend_ps((__mmask16)((1u << count) - 1), a, _mm512_set1_ps(other));
}

inline I zero_i() { return _mm512_setzero_si512(); }
inline I add_i(I a, I b) { return _mm512_add_epi32(a, b); }
inline F to_float(I a) { return _mm512_cvtepi32_ps(a); }
inline B bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline B fill(int value) { return _mm512_set1_epi8((char)value); }
inline B both(B a, B b) { return _mm512_and_si512(a, b); }
inline B either(B a, B b) { return _mm512_or_si512(a, b); }
template <int N> inline B right(B a) { return _mm512_srli_epi16(a, N); }  // bits cross bytes: mask afterwards
template <int N> inline B left(B a) { return _mm512_slli_epi16(a, N); }

// four bytes in each lane: sixteen times the lane's byte at `p`
inline B sixteenfold(const uint8_t* p) {
  return _mm512_mullo_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)), _mm512_set1_epi32(0x10101010));
}
// 64 bytes of which `pick` takes the one that each byte of `index`, up to 63, names
#if defined(__AVX512VBMI__)
using Table = __m512i;
inline Table table(const uint8_t* p) { return bytes(p); }
inline B pick(const Table& from, B index) { return _mm512_permutexvar_epi8(index, from); }
#else
struct Table {
  B quarter[4];
};
inline Table table(const uint8_t* p) {
  Table made;
  for (int i = 0; i < 4; i++) made.quarter[i] = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)(p + 16 * i)));
  return made;
}
inline B pick(const Table& from, B index) {
  const B low = both(index, fill(15)), which = both(index, fill(48));
  B found = _mm512_shuffle_epi8(from.quarter[0], low);
  for (int i = 1; i < 4; i++)
    found = _mm512_mask_shuffle_epi8(found, _mm512_cmpeq_epi8_mask(which, fill(16 * i)), from.quarter[i], low);
  return found;
}
#endif

// acc[lane] += the four products of the lane's bytes of `codes` (unsigned) with the four activations at `a` (signed)
template <bool WIDE> inline I dot(I acc, B codes, const int8_t* a) {
  int32_t four;
  std::memcpy(&four, a, 4);
  return _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(four));
}

#else
constexpr int WIDEST = 4;

typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint8_t B __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint8_t Small __attribute__((vector_size(16)));
typedef int8_t SmallSigned __attribute__((vector_size(16)));

template <class V> inline V fetch(const void* p) {
  V a;
  std::memcpy(&a, p, sizeof a);
  return a;
}
inline F load(const float* p) { return fetch<F>(p); }
inline void store(float* p, F a) { std::memcpy(p, &a, sizeof a); }
inline F set1(float a) { return F{} + a; }
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F divide(F a, F b) { return a / b; }
inline F maximum(F a, F b) { return a > b ? a : b; }
inline F minimum(F a, F b) { return a < b ? a : b; }
#if defined(__AVX2__)
union Floats {
  F whole;
  __m256 half[2];
};
union Integers {
  B bytes;
  I whole;
  __m256i half[2];
};
inline F fma(F a, F b, F c) {
  Floats x{a}, y{b}, z{c};
  for (int i = 0; i < 2; i++) z.half[i] = _mm256_fmadd_ps(x.half[i], y.half[i], z.half[i]);
  return z.whole;
}
inline F fnma(F a, F b, F c) { return fma(F{} - a, b, c); }
#else
inline F fma(F a, F b, F c) { return a * b + c; }
inline F fnma(F a, F b, F c) { return c - a * b; }
#endif
inline F magnitude(F a) { return a < 0 ? -a : a; }
inline float sum(F a) {
  float total = 0;
  for (int i = 0; i < 16; i++) total += a[i];
  return total;
}
inline float highest(F a) {
  float top = a[0];
  for (int i = 1; i < 16; i++) top = a[i] > top ? a[i] : top;
  return top;
}
inline F nearest(F a) { return (a + 12582912.0f) - 12582912.0f; }  // 1.5 * 2**23: no bits are left for fractions
inline F times_power(F a, F n) {
  const I exponent = (__builtin_convertvector(n, I) + 127) << 23;  // n is a whole number from -126 on
  return a * fetch<F>(&exponent);
}
inline F load_bf16(const uint16_t* p) {
  const Words wide = __builtin_convertvector(fetch<Halves>(p), Words) << 16;
  return fetch<F>(&wide);
}
inline F load_u8(const uint8_t* p) { return __builtin_convertvector(fetch<Small>(p), F); }
inline F load_lower(const uint8_t* p) { return __builtin_convertvector(fetch<Small>(p) & 15, F); }
inline F load_upper(const uint8_t* p) { return __builtin_convertvector(fetch<Small>(p) >> 4, F); }
inline void store_i8(int8_t* p, F a) {
  const SmallSigned small = __builtin_convertvector(__builtin_convertvector(nearest(a), I), SmallSigned);
  std::memcpy(p, &small, sizeof small);
}
inline F keep_first(F a, int count, float other) {
  const I lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lanes < count ? a : set1(other);
}
inline F drop_first(F a, int count, float other) {
  const I lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lanes < count ? set1(other) : a;
}

inline I zero_i() { return I{}; }
inline I add_i(I a, I b) { return a + b; }
inline F to_float(I a) { return __builtin_convertvector(a, F); }
inline B bytes(const uint8_t* p) { return fetch<B>(p); }
inline B fill(int value) { return B{} + (uint8_t)value; }
inline B both(B a, B b) { return a & b; }
inline B either(B a, B b) { return a | b; }
template <int N> inline B right(B a) { return a >> N; }
template <int N> inline B left(B a) { return a << N; }

inline B sixteenfold(const uint8_t* p) {
  const Words wide = __builtin_convertvector(fetch<Small>(p), Words) * 0x10101010;
  return fetch<B>(&wide);
}
struct Table {
  uint8_t all[64];
};
inline Table table(const uint8_t* p) { return fetch<Table>(p); }
#if defined(__AVX2__)
inline B pick(const Table& from, B index) {
  Integers at{index}, found{};
  for (int i = 0; i < 4; i++) {
    const __m256i quarter = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(from.all + 16 * i)));
    for (int half = 0; half < 2; half++) {
      const __m256i which = _mm256_and_si256(at.half[half], _mm256_set1_epi8(48));
      const __m256i low = _mm256_and_si256(at.half[half], _mm256_set1_epi8(15));
      const __m256i here = _mm256_cmpeq_epi8(which, _mm256_set1_epi8(16 * i));
      const __m256i value = _mm256_and_si256(here, _mm256_shuffle_epi8(quarter, low));
      found.half[half] = _mm256_or_si256(found.half[half], value);
    }
  }
  return found.bytes;
}
#else
inline B pick(const Table& from, B index) {
  B found;
  for (int i = 0; i < 64; i++) found[i] = from.all[index[i]];
  return found;
}
#endif

#if defined(__AVX2__)
// pairs of products are added in 16 bits: 2 * 15 * 127 fits, 2 * 255 * 127 does not, so wide codes go nibble by nibble
inline __m256i quads(__m256i codes, __m256i a) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, a), _mm256_set1_epi16(1));
}
template <bool WIDE> inline I dot(I acc, B codes, const int8_t* a) {
  int32_t four;
  std::memcpy(&four, a, 4);
  const __m256i spread = _mm256_set1_epi32(four), low = _mm256_set1_epi8(15);
  Integers total, w{codes};
  total.whole = acc;
  for (int i = 0; i < 2; i++) {
    __m256i found = quads(WIDE ? _mm256_and_si256(w.half[i], low) : w.half[i], spread);
    if (WIDE) {
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(w.half[i], 4), low);
      found = _mm256_add_epi32(found, _mm256_slli_epi32(quads(high, spread), 4));
    }
    total.half[i] = _mm256_add_epi32(total.half[i], found);
  }
  return total.whole;
}
#else
template <bool WIDE> inline I dot(I acc, B codes, const int8_t* a) {
  for (int lane = 0; lane < 16; lane++)
    for (int i = 0; i < 4; i++) acc[lane] += (int32_t)codes[4 * lane + i] * a[i];
  return acc;
}
#endif
#endif

struct Pairs {
  Table first, second;
};

// e**a by Cody and Waite's reduction and a polynomial of degree 6 (coefficients of the Taylor series, |r| <= ln 2 / 2)
inline F exponential(F a) {
  a = minimum(maximum(a, set1(-87.0f)), set1(88.0f));
  const F n = nearest(mul(a, set1(1.44269504f)));
  F r = fnma(n, set1(0.693359375f), a);
  r = fnma(n, set1(-2.12194440e-4f), r);
  F p = set1(1.0f / 720);
  for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, r, set1(c));
  return times_power(p, n);
}

// Rounded to nearest, ties to even
inline uint16_t to_bf16(float a) {
  uint32_t bits;
  std::memcpy(&bits, &a, 4);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
