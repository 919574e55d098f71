// Passes over images in fp32 or bf16 that torch's own operations make slowly on a CPU. A lane is a
// channel, or a channel of an image; the lanes of a pixel lie side by side.
//
// Compiled by fasttricks/_native.py with GCC, of which it needs the vector types.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int kVector = 16;
#else
constexpr int kVector = 8;
#endif
// Lanes of a block: 256 or 512 bytes of each pixel, below which jumping from pixel to pixel, each
// on a page of its own, costs more than the arithmetic.
constexpr int64_t kBlock = 128;
constexpr int kMostHeight = 10;  // of the pixels that are transformed

typedef float Floats __attribute__((vector_size(4 * kVector)));
typedef uint32_t Words __attribute__((vector_size(4 * kVector)));
typedef uint16_t Halves __attribute__((vector_size(2 * kVector)));
typedef uint8_t Bytes __attribute__((vector_size(kVector)));

struct Bfloat16 {
  uint16_t bits;
};

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Floats load(const Bfloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

// Stores round to the nearest, a tie to even; what is not a number stays so. (The processor's own way
// takes numbers under 2^-126 for 0.) An exact one is for what was loaded from there, or 0.
template <bool kExact = false>
inline void store(Floats value, float* to) {
  std::memcpy(to, &value, sizeof value);
}

template <bool kExact = false>
inline void store(Floats value, Bfloat16* to) {
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
inline Floats load(const T* from, int64_t count) {
  if (count >= kVector) return load(from);
  T some[kVector] = {};
  std::memcpy(some, from, sizeof(T) * count);
  return load(some);
}

template <bool kExact = false, class T>
inline void store(Floats value, T* to, int64_t count) {
  if (count >= kVector) return store<kExact>(value, to);
  T some[kVector];
  store<kExact>(value, some);
  std::memcpy(to, some, sizeof(T) * count);
}

// Winograd's transforms: y = (rows (x) columns) x, with x [height * width, lanes] and
// y [up * across, lanes]. rows [up, height] is dense, columns [across, width] is sparse (compressed
// rows: starts, index, value). All in fp32 but for what is read and written. A block of lanes is
// read once, stays near the core, and is written once; torch's products of such flat matrices spend
// most of their time on bringing them into another order.

struct Sparse {
  const int32_t* starts;
  const int32_t* index;
  const float* value;
  int64_t across;
  int64_t width;
};

template <class T, int kHeight>
int transform(const float* rows, int64_t up, Sparse columns, const T* x, T* y, int64_t lanes,
              bool add) {
  const int64_t pixels = kHeight * columns.width;
  const int64_t blocks = (lanes + kBlock - 1) / kBlock;
  int failed = 0;
#pragma omp parallel
  {
    float* const block =
        static_cast<float*>(std::aligned_alloc(64, sizeof(float) * pixels * kBlock));
    if (block == nullptr) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
      if (block == nullptr) continue;
      const int64_t first = b * kBlock, count = std::min(kBlock, lanes - first);
      for (int64_t pixel = 0; pixel < pixels; pixel++) {
        const T* const from = x + pixel * lanes + first;
        float* const to = block + pixel * kBlock;
        for (int64_t lane = 0; lane < count; lane += kVector) {
          store(load(from + lane, count - lane), to + lane);
          __builtin_prefetch(from + kBlock + lane);
        }
      }
      for (int64_t q = 0; q < columns.across; q++) {
        const int32_t start = columns.starts[q], stop = columns.starts[q + 1];
        for (int64_t lane = 0; lane < count; lane += kVector) {
          Floats column[kHeight] = {};
          for (int32_t k = start; k < stop; k++)
            for (int i = 0; i < kHeight; i++)
              column[i] += columns.value[k] *
                           load(block + (i * columns.width + columns.index[k]) * kBlock + lane);
          for (int64_t p = 0; p < up; p++) {
            Floats sum = {};
            for (int i = 0; i < kHeight; i++) sum += rows[p * kHeight + i] * column[i];
            T* const to = y + (p * columns.across + q) * lanes + first + lane;
            if (add) sum += load(to, count - lane);
            store(sum, to, count - lane);
          }
        }
      }
    }
    std::free(block);
  }
  return failed;
}

template <class T, int kHeight = 1>
int dispatch(int64_t height, const float* rows, int64_t up, Sparse columns, const T* x, T* y,
             int64_t lanes, bool add) {
  if (height == kHeight) return transform<T, kHeight>(rows, up, columns, x, y, lanes, add);
  if constexpr (kHeight < kMostHeight)
    return dispatch<T, kHeight + 1>(height, rows, up, columns, x, y, lanes, add);
  return 2;
}

// The largest of 2 x 2 pixels, and which of the four it is (the first of equal ones; what is not a
// number wins, as in torch), of maps [height, width, lanes]; and the way back.

template <class T>
void max_pool(const T* x, T* y, uint8_t* which, int64_t maps, int64_t height, int64_t width,
              int64_t lanes) {
  const int64_t rows = height / 2, columns = width / 2;
#pragma omp parallel for schedule(static)
  for (int64_t window = 0; window < maps * rows * columns; window++) {
    const int64_t map = window / (rows * columns), row = window / columns % rows;
    const T* const from =
        x + ((map * height + 2 * row) * width + 2 * (window % columns)) * lanes;
    const T* const pixels[] = {from, from + lanes, from + width * lanes,
                               from + (width + 1) * lanes};
    for (int64_t lane = 0; lane < lanes; lane += kVector) {
      const int64_t count = std::min<int64_t>(kVector, lanes - lane);
      Floats best = load(pixels[0] + lane, count);
      Words place = {};
      for (uint32_t k = 1; k < 4; k++) {
        const Floats value = load(pixels[k] + lane, count);
        const Words larger = (Words)((value > best) | (value != value));
        best = (Floats)(((Words)value & larger) | ((Words)best & ~larger));
        place = (k & larger) | (place & ~larger);
      }
      store<true>(best, y + window * lanes + lane, count);
      const Bytes bytes = __builtin_convertvector(place, Bytes);
      std::memcpy(which + window * lanes + lane, &bytes, count);
    }
  }
}

template <class T>
void max_pool_backward(const T* grad, const uint8_t* which, T* x, int64_t maps, int64_t height,
                       int64_t width, int64_t lanes) {
  const int64_t rows = height / 2, columns = width / 2;
#pragma omp parallel for schedule(static)
  for (int64_t line = 0; line < maps * ((height + 1) / 2); line++) {
    const int64_t map = line / ((height + 1) / 2), row = line % ((height + 1) / 2);
    T* const to = x + (map * height + 2 * row) * width * lanes;
    if (row == rows) {  // an odd last row
      std::memset(to, 0, sizeof(T) * width * lanes);
      continue;
    }
    for (int64_t column = 0; column < columns; column++) {
      const int64_t window = (map * rows + row) * columns + column;
      T* const first = to + 2 * column * lanes;
      T* const pixels[] = {first, first + lanes, first + width * lanes,
                           first + (width + 1) * lanes};
      for (int64_t lane = 0; lane < lanes; lane += kVector) {
        const int64_t count = std::min<int64_t>(kVector, lanes - lane);
        const Words value = (Words)load(grad + window * lanes + lane, count);
        Bytes bytes = {};
        std::memcpy(&bytes, which + window * lanes + lane, count);
        const Words place = __builtin_convertvector(bytes, Words);
        for (uint32_t k = 0; k < 4; k++)
          store<true>((Floats)(value & (Words)(place == k)), pixels[k] + lane, count);
      }
    }
    if (width % 2)
      for (int64_t below = 0; below < 2; below++)
        std::memset(to + ((below + 1) * width - 1) * lanes, 0, sizeof(T) * lanes);
  }
}

}  // namespace

// Returns 0; 1 without memory; 2 for a height over 10.
extern "C" int fasttricks_winograd(int is_bf16, int add, const float* rows, int64_t up,
                                   int64_t height, const int32_t* starts, const int32_t* index,
                                   const float* value, int64_t across, int64_t width,
                                   const void* x, void* y, int64_t lanes) {
  const Sparse columns = {starts, index, value, across, width};
  if (is_bf16)
    return dispatch(height, rows, up, columns, static_cast<const Bfloat16*>(x),
                    static_cast<Bfloat16*>(y), lanes, add != 0);
  return dispatch(height, rows, up, columns, static_cast<const float*>(x),
                  static_cast<float*>(y), lanes, add != 0);
}

extern "C" void fasttricks_max_pool(int is_bf16, const void* x, void* y, uint8_t* which,
                                    int64_t maps, int64_t height, int64_t width, int64_t lanes) {
  if (is_bf16)
    max_pool(static_cast<const Bfloat16*>(x), static_cast<Bfloat16*>(y), which, maps, height,
             width, lanes);
  else
    max_pool(static_cast<const float*>(x), static_cast<float*>(y), which, maps, height, width,
             lanes);
}

extern "C" void fasttricks_max_pool_backward(int is_bf16, const void* grad, const uint8_t* which,
                                             void* x, int64_t maps, int64_t height,
                                             int64_t width, int64_t lanes) {
  if (is_bf16)
    max_pool_backward(static_cast<const Bfloat16*>(grad), which, static_cast<Bfloat16*>(x), maps,
                      height, width, lanes);
  else
    max_pool_backward(static_cast<const float*>(grad), which, static_cast<float*>(x), maps,
                      height, width, lanes);
}
