// One pass of Winograd's transforms, for images in fp32 or bf16, computed in fp32.
//
//     y = (rows (x) columns) x        x [height * width, lanes], y [up * across, lanes]
//
// rows [up, height] is dense, columns [across, width] is sparse (compressed rows: starts, index,
// value). A lane is a channel of an image. A block of lanes is read once, stays in the nearest
// cache, and is written once; torch's products of such flat matrices spend most of their time on
// bringing them into another order.
//
// Compiled by fasttricks/_native.py with GCC, of which it needs the vector types.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

#ifdef __AVX512F__
constexpr int kVector = 16;
#else
constexpr int kVector = 8;
#endif
// Lanes of a block: 256 or 512 bytes of each pixel, below which jumping from pixel to pixel, each
// on a page of its own, costs more than the arithmetic.
constexpr int64_t kBlock = 128;
constexpr int kMostHeight = 10;

typedef float Floats __attribute__((vector_size(4 * kVector)));
typedef uint32_t Words __attribute__((vector_size(4 * kVector)));
typedef uint16_t Halves __attribute__((vector_size(2 * kVector)));

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

inline void store(Floats value, float* to) { std::memcpy(to, &value, sizeof value); }

// Rounds to the nearest, a tie to even; what is not a number stays so.
inline void store(Floats value, Bfloat16* to) {
  const Words bits = (Words)value;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words number = (Words)(value == value);
  const Halves halves =
      __builtin_convertvector((rounded & number) | (0x7fc0 & ~number), Halves);
  std::memcpy(to, &halves, sizeof halves);
}

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
        int64_t lane = 0;
        for (; lane + kVector <= count; lane += kVector) {
          store(load(from + lane), to + lane);
          __builtin_prefetch(from + kBlock + lane);
        }
        if (lane < count) {
          T rest[kVector] = {};
          std::memcpy(rest, from + lane, sizeof(T) * (count - lane));
          store(load(rest), to + lane);
        }
      }
      for (int64_t q = 0; q < columns.across; q++) {
        const int32_t start = columns.starts[q], stop = columns.starts[q + 1];
        for (int64_t lane = 0; lane < count; lane += kVector) {
          Floats column[kHeight];
          for (int i = 0; i < kHeight; i++) {
            Floats sum = {};
            for (int32_t k = start; k < stop; k++)
              sum += columns.value[k] *
                     load(block + (i * columns.width + columns.index[k]) * kBlock + lane);
            column[i] = sum;
          }
          for (int64_t p = 0; p < up; p++) {
            Floats sum = {};
            for (int i = 0; i < kHeight; i++) sum += rows[p * kHeight + i] * column[i];
            T* const to = y + (p * columns.across + q) * lanes + first + lane;
            if (lane + kVector <= count) {
              store(add ? sum + load(to) : sum, to);
            } else {
              T rest[kVector] = {};
              std::memcpy(rest, to, sizeof(T) * (count - lane));
              store(add ? sum + load(rest) : sum, rest);
              std::memcpy(to, rest, sizeof(T) * (count - lane));
            }
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

}  // namespace

// Returns 0, 1 without memory, 2 for a height over 10.
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
