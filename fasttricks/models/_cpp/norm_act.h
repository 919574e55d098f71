// Batch norm and an activation, y = f(z) with z = (x - mean) * scale + bias, of rows of channels; and
// an activation alone.

#pragma once

#include "vectors.h"

namespace {

// exp(x), to a thirteenth of what bf16 rounds, or about to what fp32 rounds; exp(0) is 1.
template <class T>
INLINE Floats exponential(Floats x) {
  constexpr bool kFew = std::is_same_v<T, Bfloat16>;
#ifdef __AVX512DQ__
  if constexpr (kFew) {
    const Floats power = x * 1.44269504f;
    const Floats part = (Floats)_mm512_reduce_ps((__m512)power, _MM_FROUND_TO_NEG_INF);
    const Floats value = ((part * 0.0770670f + 0.2276450f) * part + 0.6951168f) * part + 1.f;
    return (Floats)_mm512_scalef_ps((__m512)value, (__m512)power);
  }
#endif
  const Floats most = Floats{} + 87.f;
  const Floats shift = Floats{} + 12582912.f;  // 1.5 * 2^23: what is added to it loses its fraction
  const Floats shifted = x * 1.44269504f + shift;
  const Floats whole = shifted - shift;
  const Floats part = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts
  Floats value;
  if constexpr (kFew) {
    value = ((part * 0.165180f + 0.504131f) * part + 1.000196f) * part + 1.f;
  } else {
    value = part * 1.9875691500e-4f + 1.3981999507e-3f;
    value = value * part + 8.3334519073e-3f;
    value = value * part + 4.1665795894e-2f;
    value = value * part + 1.6666665459e-1f;
    value = value * part + 5.0000001201e-1f;
    value = value * part * part + part + 1.f;
  }
  value = (Floats)((Words)value + ((Words)shifted << 23));
  value = x < -most ? Floats{} : value;
  value = x > most ? Floats{} + __builtin_inff() : value;
  return x == x ? value : x;
}

template <class T>
INLINE Floats reciprocal(Floats x) {
#ifdef __AVX512F__
  if constexpr (std::is_same_v<T, Bfloat16>) return (Floats)_mm512_rcp14_ps((__m512)x);
#endif
  return 1.f / x;
}

// How much of the normal distribution is beyond |z| on one side, to 1e-7; Abramowitz and Stegun, 7.1.26.
template <class T>
INLINE Floats tail(Floats z) {
  const Floats x = (z < 0.f ? -z : z) * 0.707106781f;
  const Floats t = reciprocal<T>(x * 0.3275911f + 1.f);
  Floats value = t * 1.061405429f - 1.453152027f;
  value = value * t + 1.421413741f;
  value = value * t - 0.284496736f;
  value = value * t + 0.254829592f;
  return value * t * exponential<T>(-x * x) * 0.5f;
}

enum Act { kIdentity, kReLU, kSiLU, kCELU, kGELU };

template <class T, Act kAct>
INLINE Floats activate(Floats z, float alpha) {
  if constexpr (kAct == kSiLU) return z * reciprocal<T>(1.f + exponential<T>(-z));
  if constexpr (kAct == kCELU) {
    const Floats below = alpha * exponential<T>(z * (1.f / alpha)) - alpha;
    return z > 0.f ? z : below;
  }
  if constexpr (kAct == kGELU) {
    const Floats beyond = tail<T>(z);
    return z * (z < 0.f ? beyond : 1.f - beyond);
  }
  if constexpr (kAct == kReLU) return z < 0.f ? Floats{} : z;
  return z;
}

// Its derivative.
template <class T, Act kAct>
INLINE Floats slope(Floats z, float alpha) {
  const Floats one = Floats{} + 1.f;
  if constexpr (kAct == kSiLU) {
    const Floats sigmoid = reciprocal<T>(1.f + exponential<T>(-z));
    return sigmoid * (z * (1.f - sigmoid) + 1.f);
  }
  if constexpr (kAct == kCELU) {
    const Floats below = exponential<T>(z * (1.f / alpha));
    return z > 0.f ? one : below;
  }
  if constexpr (kAct == kGELU) {
    const Floats beyond = tail<T>(z);
    const Floats density = exponential<T>(z * z * -0.5f) * 0.398942280f;
    return (z < 0.f ? beyond : one - beyond) + z * density;
  }
  if constexpr (kAct == kReLU) return z > 0.f ? one : Floats{};
  return one;
}

// f of images in channels_last [images, pixels, channels] to such by pixel [pixels, images, channels].
template <class T, Act kAct>
void act_by_pixel(float alpha, const T* x, T* y, int64_t images, int64_t pixels,
                  int64_t channels) {
  // Some images, so that whole cache lines of a pixel are written, and some pixels near the core.
  constexpr int64_t kImages = 8, kNumbers = 1024;
  const int64_t some = std::max<int64_t>(1, kNumbers / channels);
  const int64_t parts = (pixels + some - 1) / some;
#pragma omp parallel for schedule(static)
  for (int64_t part = 0; part < (images + kImages - 1) / kImages * parts; part++) {
    const int64_t image = part / parts * kImages, pixel = part % parts * some;
    const int64_t count = std::min(some, pixels - pixel);
    for (int64_t n = image; n < std::min(images, image + kImages); n++) {
      const T* const from = x + (n * pixels + pixel) * channels;
      T near[kNumbers + kVector];
      for (int64_t lane = 0; lane < count * channels; lane += kVector)
        store(activate<T, kAct>(load(from + lane, count * channels - lane), alpha), near + lane);
      for (int64_t p = 0; p < count; p++)
        std::memcpy(y + ((pixel + p) * images + n) * channels, near + p * channels,
                    channels * sizeof(T));
    }
  }
}

// Adds up into sums[parts, 2, channels] the two numbers that f(at, lane) gives of each place, over the
// rows of each part. Channels are whole vectors.
template <class F>
INLINE void reduce(int64_t rows, int64_t channels, int64_t parts, float* sums, F f) {
#pragma omp parallel for schedule(static)
  for (int64_t part = 0; part < parts; part++) {
    float* const one = sums + part * 2 * channels;
    float* const two = one + channels;
    std::memset(one, 0, sizeof(float) * 2 * channels);
    for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; row++)
      for (int64_t lane = 0; lane < channels; lane += kVector) {
        Floats first, second;
        f(row * channels + lane, lane, first, second);
        store(first + load(one + lane), one + lane);
        store(second + load(two + lane), two + lane);
      }
  }
}

// Puts at each place what f(at, lane) gives of it.
template <class T, class F>
INLINE void map(int64_t rows, int64_t channels, T* to, F f) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t lane = 0; lane < channels; lane += kVector) {
      const int64_t at = row * channels + lane;
      store(f(at, lane), to + at);
    }
}

// Of x - shift, and of its square.
template <class T>
void sums(const float* shift, const T* x, int64_t rows, int64_t channels, int64_t parts,
          float* found) {
  reduce(rows, channels, parts, found, [=](int64_t at, int64_t lane, Floats& one, Floats& square) {
    one = load(x + at) - load(shift + lane);
    square = one * one;
  });
}

// Of [3, channels]: what is taken away from each channel, what it is multiplied by, what is added.
struct Norm {
  const float* mean;
  const float* scale;
  const float* bias;

  Norm(const float* norm, int64_t channels)
      : mean(norm), scale(norm + channels), bias(norm + 2 * channels) {}
};

template <class T, Act kAct>
void norm_act(Norm norm, float alpha, const T* x, T* y, int64_t rows, int64_t channels) {
  map(rows, channels, y, [=](int64_t at, int64_t lane) {
    const Floats centred = load(x + at) - load(norm.mean + lane);
    return activate<T, kAct>(centred * load(norm.scale + lane) + load(norm.bias + lane), alpha);
  });
}

// Of grad' = grad * f'(z), and of grad' * (x - mean).
template <class T, Act kAct>
void norm_act_sums(Norm norm, float alpha, const T* x, const T* grad, int64_t rows,
                   int64_t channels, int64_t parts, float* found) {
  reduce(rows, channels, parts, found, [=](int64_t at, int64_t lane, Floats& one, Floats& two) {
    const Floats centred = load(x + at) - load(norm.mean + lane);
    const Floats z = centred * load(norm.scale + lane) + load(norm.bias + lane);
    one = load(grad + at) * slope<T, kAct>(z, alpha);
    two = one * centred;
  });
}

// grad' * scale + (x - mean) * slopes + offsets, of lines[2, channels]
template <class T, Act kAct>
void norm_act_backward(Norm norm, float alpha, const T* x, const T* grad, const float* lines,
                       T* found, int64_t rows, int64_t channels) {
  map(rows, channels, found, [=](int64_t at, int64_t lane) {
    const Floats centred = load(x + at) - load(norm.mean + lane);
    const Floats scale = load(norm.scale + lane);
    const Floats z = centred * scale + load(norm.bias + lane);
    const Floats sloped = load(grad + at) * slope<T, kAct>(z, alpha);
    return sloped * scale + (centred * load(lines + lane) + load(lines + channels + lane));
  });
}

}  // namespace
