// The largest of 2 x 2 pixels.

#pragma once

#include "vectors.h"

namespace {

// One of them, and which of the four it is: the first of equal ones; what is not a number wins, as in
// torch.
template <class T>
INLINE void largest(const T* corner, int64_t right, int64_t down, T* to, uint8_t* which,
                    int64_t count) {
  const T* const pixels[] = {corner, corner + right, corner + down, corner + down + right};
  Floats best = load(corner, count);
  Words place = {};
  UNROLL for (uint32_t k = 1; k < 4; k++) {
    const Floats value = load(pixels[k], count);
    const Words larger = (Words)((value > best) | (value != value));
    best = (Floats)(((Words)value & larger) | ((Words)best & ~larger));
    place = (k & larger) | (place & ~larger);
  }
  store<true>(best, to, count);
  store(place, which, count);
}

// Of maps [height, width, lanes].
template <class T>
void max_pool(const T* x, T* y, uint8_t* which, int64_t maps, int64_t height, int64_t width,
              int64_t lanes) {
  const int64_t rows = height / 2, columns = width / 2;
#pragma omp parallel for schedule(static)
  for (int64_t window = 0; window < maps * rows * columns; window++) {
    const int64_t map = window / (rows * columns), row = window / columns % rows;
    const T* const from =
        x + ((map * height + 2 * row) * width + 2 * (window % columns)) * lanes;
    for (int64_t lane = 0; lane < lanes; lane += kVector) {
      const int64_t at = window * lanes + lane;
      largest(from + lane, lanes, width * lanes, y + at, which + at, lanes - lane);
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
      T* const first = to + 2 * column * lanes;
      T* const pixels[] = {first, first + lanes, first + width * lanes,
                           first + (width + 1) * lanes};
      for (int64_t lane = 0; lane < lanes; lane += kVector) {
        const int64_t at = ((map * rows + row) * columns + column) * lanes + lane;
        const int64_t count = lanes - lane;
        const Words value = (Words)load(grad + at, count), place = load(which + at, count);
        UNROLL for (uint32_t k = 0; k < 4; k++)
          store<true>((Floats)(value & (Words)(place == k)), pixels[k] + lane, count);
      }
    }
    if (width % 2)
      for (int64_t below = 0; below < 2; below++)
        std::memset(to + ((below + 1) * width - 1) * lanes, 0, sizeof(T) * lanes);
  }
}

}  // namespace
