// Passes over images in fp32 or bf16 that torch's own operations make slowly on a CPU.
//
// Compiled by fasttricks/_native.py with GCC, of which they need the vector types.

#include "halving.h"
#include "norm_act.h"
#include "vectors.h"
#include "winograd.h"

// Returns 0; 1 where there is no product of such sizes; 2 without memory.
extern "C" int fasttricks_winograd(int forth, const Side* rows, const Side* columns, void* pixels,
                                   int pixels_are_bf16, void* points, int points_are_bf16,
                                   int64_t tiles, int64_t step, int64_t shared, int64_t added,
                                   const Halving* halving, int64_t lanes, int64_t threads) {
  const Memory far[] = {{static_cast<char*>(pixels), pixels_are_bf16 != 0},
                        {static_cast<char*>(points), points_are_bf16 != 0}};
  return transform({*rows, *columns, far[0], far[1], tiles, step, shared, added, halving, lanes},
                   forth != 0, threads);
}

extern "C" void fasttricks_max_pool(int is_bf16, const void* x, void* y, uint8_t* which,
                                    int64_t maps, int64_t height, int64_t width, int64_t lanes) {
  typed(is_bf16, [=](auto number) {
    using T = decltype(number);
    max_pool(static_cast<const T*>(x), static_cast<T*>(y), which, maps, height, width, lanes);
  });
}

extern "C" void fasttricks_max_pool_backward(int is_bf16, const void* grad, const uint8_t* which,
                                             void* x, int64_t maps, int64_t height,
                                             int64_t width, int64_t lanes) {
  typed(is_bf16, [=](auto number) {
    using T = decltype(number);
    max_pool_backward(static_cast<const T*>(grad), which, static_cast<T*>(x), maps, height, width,
                      lanes);
  });
}

extern "C" void fasttricks_sums(int is_bf16, const float* shift, const void* x, int64_t rows,
                                int64_t channels, int64_t parts, float* found) {
  typed(is_bf16, [=](auto number) {
    sums(shift, static_cast<const decltype(number)*>(x), rows, channels, parts, found);
  });
}

// Calls f(act, number), where act is the activation of the number of an Act, and number of the type.
template <class F>
void choose(int is_bf16, int act, F f) {
  typed(is_bf16, [=](auto number) {
    if (act == kReLU) return f(std::integral_constant<Act, kReLU>(), number);
    if (act == kSiLU) return f(std::integral_constant<Act, kSiLU>(), number);
    if (act == kCELU) return f(std::integral_constant<Act, kCELU>(), number);
    if (act == kGELU) return f(std::integral_constant<Act, kGELU>(), number);
    return f(std::integral_constant<Act, kIdentity>(), number);
  });
}

extern "C" void fasttricks_act_by_pixel(int is_bf16, int act, float alpha, const void* x, void* y,
                                        int64_t images, int64_t pixels, int64_t channels) {
  choose(is_bf16, act, [=](auto act, auto number) {
    using T = decltype(number);
    act_by_pixel<T, act>(alpha, static_cast<const T*>(x), static_cast<T*>(y), images, pixels,
                         channels);
  });
}

extern "C" void fasttricks_norm_act(int is_bf16, int act, float alpha, const float* norm,
                                    const void* x, void* y, int64_t rows, int64_t channels) {
  choose(is_bf16, act, [=](auto act, auto number) {
    using T = decltype(number);
    norm_act<T, act>({norm, channels}, alpha, static_cast<const T*>(x), static_cast<T*>(y), rows,
                     channels);
  });
}

extern "C" void fasttricks_norm_act_sums(int is_bf16, int act, float alpha, const float* norm,
                                         const void* x, const void* grad, int64_t rows,
                                         int64_t channels, int64_t parts, float* found) {
  choose(is_bf16, act, [=](auto act, auto number) {
    using T = decltype(number);
    norm_act_sums<T, act>({norm, channels}, alpha, static_cast<const T*>(x),
                          static_cast<const T*>(grad), rows, channels, parts, found);
  });
}

extern "C" void fasttricks_norm_act_backward(int is_bf16, int act, float alpha, const float* norm,
                                             const void* x, const void* grad, const float* lines,
                                             void* found, int64_t rows, int64_t channels) {
  choose(is_bf16, act, [=](auto act, auto number) {
    using T = decltype(number);
    norm_act_backward<T, act>({norm, channels}, alpha, static_cast<const T*>(x),
                              static_cast<const T*>(grad), lines, static_cast<T*>(found), rows,
                              channels);
  });
}
