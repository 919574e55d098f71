// Vectors of numbers in fp32, and how they come from memory in fp32 or bf16 and go back. A lane is a
// channel, or a channel of an image; the lanes of a pixel lie side by side.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE inline __attribute__((always_inline))

namespace {

#ifdef __AVX512F__
constexpr int kVector = 16;
#else
constexpr int kVector = 8;
#endif

typedef float Floats __attribute__((vector_size(4 * kVector)));
typedef uint32_t Words __attribute__((vector_size(4 * kVector)));
typedef uint16_t Halves __attribute__((vector_size(2 * kVector)));
typedef uint8_t Bytes __attribute__((vector_size(kVector)));

struct Bfloat16 {
  uint16_t bits;
};

// Calls f with a number of the type.
template <class F>
INLINE void typed(bool is_bf16, F f) {
  if (is_bf16)
    f(Bfloat16());
  else
    f(float());
}

INLINE Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

INLINE Floats load(const Bfloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
#ifdef __AVX512F__  // for which GCC 12 takes six instructions by itself
  return (Floats)((Words)_mm512_cvtepu16_epi32((__m256i)halves) << 16);
#else
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
#endif
}

// Stores round to the nearest, a tie to even; what is not a number stays so. (The processor's own way
// takes numbers under 2^-126 for 0.) An exact one is for what was loaded from there, or 0.
template <bool kExact = false>
INLINE void store(Floats value, float* to) {
  std::memcpy(to, &value, sizeof value);
}

template <bool kExact = false>
INLINE void store(Floats value, Bfloat16* to) {
  const Words bits = (Words)value;
  Halves halves;
  if constexpr (kExact) {
    halves = __builtin_convertvector(bits >> 16, Halves);
  } else {
#ifdef __AVX512BF16__
    halves = (Halves)_mm512_cvtneps_pbh((__m512)value);
#else
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Words number = (Words)(value == value);
    halves = __builtin_convertvector((rounded & number) | (0x7fc0 & ~number), Halves);
#endif
  }
  std::memcpy(to, &halves, sizeof halves);
}

// The first lanes of a vector, of which at least one is wanted; the others are 0.
template <class T>
INLINE Floats load(const T* from, int64_t count) {
  if (count >= kVector) return load(from);
  T some[kVector] = {};
  std::memcpy(some, from, sizeof(T) * count);
  return load(some);
}

template <bool kExact = false, class T>
INLINE void store(Floats value, T* to, int64_t count) {
  if (count >= kVector) return store<kExact>(value, to);
  T some[kVector];
  store<kExact>(value, some);
  std::memcpy(to, some, sizeof(T) * count);
}

INLINE Words load(const uint8_t* from, int64_t count) {
  Bytes bytes = {};
  std::memcpy(&bytes, from, std::min<int64_t>(count, kVector));
  return __builtin_convertvector(bytes, Words);
}

INLINE void store(Words value, uint8_t* to, int64_t count) {
  const Bytes bytes = __builtin_convertvector(value, Bytes);
  std::memcpy(to, &bytes, std::min<int64_t>(count, kVector));
}

// Numbers in memory, of one of two types.
struct Memory {
  char* at;
  bool is_bf16;

  int64_t size() const { return is_bf16 ? 2 : 4; }
  char* operator+(int64_t numbers) const { return at + numbers * size(); }
};

// Copies to memory that is read much later, past the caches where both are whole lines of those; a
// `fence` makes that seen by other threads.
inline void copy_far(const char* from, char* to, int64_t bytes) {
#ifdef __AVX512F__
  if (bytes % 64 == 0 && reinterpret_cast<uintptr_t>(to) % 64 == 0) {
    for (int64_t k = 0; k < bytes; k += 64)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + k), _mm512_loadu_si512(from + k));
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

inline void fence() {
#ifdef __AVX512F__
  _mm_sfence();
#endif
}

}  // namespace
