// Winograd's transforms of a row of tiles, from pixels to points and back, in fp32 but for what is
// read and written. Some lanes are copied to where they stay near the core, transformed there along
// the columns and then along the rows of each tile, and copied back; torch's products of such flat
// matrices spend most of their time on bringing them into another order.

#pragma once

#include "halving.h"
#include "vectors.h"

namespace {

constexpr int kMostPoints = 10;  // of a tile's side
// Lanes that are copied at once, of each pixel on a page of its own.
constexpr int64_t kBlock = 256;
// How many pixels before they are copied their way from memory begins.
constexpr int64_t kAhead = 8;
// Vectors that are worked on at once: those of a cache line of bf16.
#ifdef __AVX512F__
constexpr int kParts = 2;
#else
constexpr int kParts = 1;
#endif
constexpr int kWide = kParts * kVector;

struct Wide {
  Floats part[kParts];
};

// A row or a column of pixels or points: where the first one is, how many numbers it is from one to
// the next, and which of them there are; others are 0, or dropped.
struct Line {
  Memory memory;
  int64_t stride;
  int64_t start;
  int64_t stop;
};

INLINE Wide get(const Line& line, int i) {
  Wide x = {};
  if (i < line.start || i >= line.stop) return x;
  const char* const from = line.memory + i * line.stride;
  UNROLL for (int k = 0; k < kParts; k++)
    x.part[k] = line.memory.is_bf16 ? load(reinterpret_cast<const Bfloat16*>(from) + k * kVector)
                                    : load(reinterpret_cast<const float*>(from) + k * kVector);
  return x;
}

// Adds to the first ones, of which there are so many.
INLINE void put(const Line& line, int i, Wide x, int64_t added) {
  if (i < line.start || i >= line.stop) return;
  if (i < added) {
    const Wide old = get(line, i);
    UNROLL for (int k = 0; k < kParts; k++) x.part[k] += old.part[k];
  }
  char* const to = line.memory + i * line.stride;
  UNROLL for (int k = 0; k < kParts; k++) {
    if (line.memory.is_bf16)
      store(x.part[k], reinterpret_cast<Bfloat16*>(to) + k * kVector);
    else
      store(x.part[k], reinterpret_cast<float*>(to) + k * kVector);
  }
}

// Products with a matrix [points, pixels], whose points are pairs of a and -a, and then kSingles of 0
// and infinity. The two rows of a pair differ in every other sign only, so that what they share is
// computed once; those of 0 and infinity have the even pixels only, or the odd ones.
typedef void (*Product)(const float* matrix, const Line& from, const Line& to, int64_t added);

constexpr int first_of_single(int points, int pixels, int singles, int p) {
  return singles == 2 && p == points - 1 ? (pixels - 1) % 2 : 0;
}

template <int kPoints, int kPixels, int kSingles>
void to_points(const float* matrix, const Line& from, const Line& to, int64_t) {
  Wide x[kPixels];
  UNROLL for (int i = 0; i < kPixels; i++) x[i] = get(from, i);
  UNROLL for (int p = 0; p < kPoints - kSingles; p += 2) {
    Wide even = {}, odd = {};
    UNROLL for (int i = 0; i < kPixels; i++)
      UNROLL for (int k = 0; k < kParts; k++)
        (i % 2 ? odd : even).part[k] += matrix[p * kPixels + i] * x[i].part[k];
    Wide sum, difference;
    UNROLL for (int k = 0; k < kParts; k++) {
      sum.part[k] = even.part[k] + odd.part[k];
      difference.part[k] = even.part[k] - odd.part[k];
    }
    put(to, p, sum, 0);
    put(to, p + 1, difference, 0);
  }
  UNROLL for (int p = kPoints - kSingles; p < kPoints; p++) {
    Wide sum = {};
    UNROLL for (int i = first_of_single(kPoints, kPixels, kSingles, p); i < kPixels; i += 2)
      UNROLL for (int k = 0; k < kParts; k++)
        sum.part[k] += matrix[p * kPixels + i] * x[i].part[k];
    put(to, p, sum, 0);
  }
}

template <int kPoints, int kPixels, int kSingles>
void to_pixels(const float* matrix, const Line& from, const Line& to, int64_t added) {
  Wide x[kPoints];
  UNROLL for (int p = 0; p < kPoints; p++) x[p] = get(from, p);
  UNROLL for (int p = 0; p < kPoints - kSingles; p += 2)
    UNROLL for (int k = 0; k < kParts; k++) {
      const Floats one = x[p].part[k], other = x[p + 1].part[k];
      x[p].part[k] = one + other;
      x[p + 1].part[k] = one - other;
    }
  UNROLL for (int i = 0; i < kPixels; i++) {
    Wide sum = {};
    UNROLL for (int p = 0; p < kPoints - kSingles; p += 2)
      UNROLL for (int k = 0; k < kParts; k++)
        sum.part[k] += matrix[p * kPixels + i] * x[p + i % 2].part[k];
    UNROLL for (int p = kPoints - kSingles; p < kPoints; p++)
      if (i % 2 == first_of_single(kPoints, kPixels, kSingles, p))
        UNROLL for (int k = 0; k < kParts; k++)
          sum.part[k] += matrix[p * kPixels + i] * x[p].part[k];
    put(to, i, sum, added);
  }
}

// The rows, or the columns, of tiles and of the map that they are cut from.
struct Side {
  const float* matrix;  // [points, pixels]
  int64_t points;
  int64_t singles;  // of the points, 0 and infinity
  int64_t pixels;   // of a tile
  int64_t first;    // where the first tile has its first pixel; may be outside the map
  int64_t size;     // of the map
};

template <int kPoints, int kPixels, int kSingles>
Product product(bool forth) {
  return forth ? to_points<kPoints, kPixels, kSingles> : to_pixels<kPoints, kPixels, kSingles>;
}

template <int kPoints = kMostPoints>
Product find(const Side& side, bool forth) {
  constexpr int kOdd = kPoints % 2;
  constexpr int kAll = kOdd ? 1 : 2;  // infinity, and 0 where that makes the others pairs
  if (side.points == kPoints && side.singles == kAll) {
    if (side.pixels == kPoints) return product<kPoints, kPoints, kAll>(forth);
    if (side.pixels == kPoints - 2) return product<kPoints, kPoints - 2, kAll>(forth);
    if (side.pixels == 3) return product<kPoints, 3, kAll>(forth);  // the weights'
  }
  if constexpr (!kOdd)
    if (side.points == kPoints && side.singles == 0) {
      if (side.pixels == kPoints) return product<kPoints, kPoints, 0>(forth);
      if (side.pixels == kPoints - 2) return product<kPoints, kPoints - 2, 0>(forth);
    }
  if constexpr (kPoints > 3) return find<kPoints - 1>(side, forth);
  return nullptr;
}

// How the pixels are halved to the largest of 2 x 2. `which` tells of each one that is left which one
// that was. The first row of pixels is the second one of its windows if it is odd; `carry` has the row
// before it then, and gets the last row if that is the first one of its windows.
struct Halving {
  uint8_t* which;
  char* carry;
  int64_t odd;
};

// Pixels [height, width, lanes] and points [up, across, tiles, lanes], tiles a row of them, each
// `step` columns after the one before. Back from points, a tile adds to the first `shared` columns,
// which the one before has too, and to the first `added` rows.
struct Transform {
  const Side& rows;
  const Side& columns;
  Memory pixels;
  Memory points;
  int64_t tiles;
  int64_t step;
  int64_t shared;
  int64_t added;
  const Halving* halving;
  int64_t lanes;
};

// Some lanes, from the first one on, of so many pixels or points of which those between are left out,
// to where they lie side by side; and back.
struct Lanes {
  int64_t all;
  int64_t first;
  int64_t count;
};

inline void gather(Memory far, Lanes lanes, int64_t pixels, int64_t apart, Memory near) {
  const int64_t bytes = lanes.count * far.size(), step = apart * lanes.all;
  for (int64_t i = 0; i < pixels; i++) {
    const char* const soon = far + (std::min(i + kAhead, pixels - 1) * step + lanes.first);
    for (int64_t k = 0; k < bytes; k += 64) __builtin_prefetch(soon + k);
    std::memcpy(near + i * kBlock, far + (i * step + lanes.first), bytes);
  }
}

inline void scatter(Memory near, Lanes lanes, int64_t pixels, int64_t apart, Memory far) {
  for (int64_t i = 0; i < pixels; i++)
    copy_far(near + i * kBlock, far + (i * apart * lanes.all + lanes.first),
             lanes.count * far.size());
}

// The same with the halved pixels: [height, width] near ones from a quarter of them, and that of
// [odd + height, width].
template <class T>
void gather_halved(const Transform& t, Lanes lanes, T* near) {
  const int64_t width = t.columns.size, columns = width / 2;
  const T* const far = reinterpret_cast<const T*>(t.pixels.at);
  for (int64_t i = 0; i < t.rows.size; i++)
    for (int64_t j = 0; j < columns; j++) {
      const int64_t row = t.halving->odd + i;
      T* const pixels = near + (i * width + 2 * j) * kBlock;
      for (int64_t lane = 0; lane < lanes.count; lane += kVector) {
        const int64_t count = lanes.count - lane;
        const int64_t at = (row / 2 * columns + j) * lanes.all + lanes.first + lane;
        const Words value = (Words)load(far + at, count), place = load(t.halving->which + at, count);
        UNROLL for (uint32_t k = 0; k < 2; k++) {
          const Words here = (Words)(place == k + static_cast<uint32_t>(row % 2 * 2));
          store<true>((Floats)(value & here), pixels + k * kBlock + lane);
        }
      }
    }
}

template <class T>
void scatter_halved(const T* near, const Transform& t, Lanes lanes) {
  const int64_t width = t.columns.size, columns = width / 2;
  alignas(64) T found[kBlock];
  alignas(64) uint8_t which[kBlock];
  for (int64_t i = 0; i < (t.halving->odd + t.rows.size) / 2; i++)
    for (int64_t j = 0; j < columns; j++) {
      const T* const corner = near + (2 * i * width + 2 * j) * kBlock;
      for (int64_t lane = 0; lane < lanes.count; lane += kVector)
        largest(corner + lane, kBlock, width * kBlock, found + lane, which + lane, kVector);
      const int64_t at = (i * columns + j) * lanes.all + lanes.first;
      copy_far(reinterpret_cast<const char*>(found), t.pixels + at, lanes.count * sizeof(T));
      std::memcpy(t.halving->which + at, which, lanes.count);
    }
}

// What a thread has near: a map of pixels, a tile's points, and what is between.
struct Near {
  Memory pixels;
  Memory points;
  Memory between;
};

INLINE void transform_tile(const Transform& t, const Near& near, bool forth, Product down,
                           Product across, int64_t tile, int64_t lane) {
  const Side &rows = t.rows, &columns = t.columns;
  const int64_t first = columns.first + tile * t.step;
  // The rows and columns of the tile that are inside the map.
  const int64_t top = std::max<int64_t>(0, -rows.first), left = std::max<int64_t>(0, -first);
  const int64_t bottom = std::min(rows.pixels, rows.size - rows.first);
  const int64_t right = std::min(columns.pixels, columns.size - first);
  const auto pixel = [&](int64_t i, int64_t j) -> Memory {
    const int64_t at = (rows.first + i) * columns.size + first + j;
    return {near.pixels + (at * kBlock + lane), near.pixels.is_bf16};
  };
  const auto point = [&](int64_t p, int64_t q) -> Memory {
    return {near.points + ((p * columns.points + q) * kBlock + lane), near.points.is_bf16};
  };
  const int64_t width = forth ? columns.points : columns.pixels;
  const auto between = [&](int64_t i, int64_t j) -> Memory {
    return {near.between + (i * width + j) * kWide, false};
  };
  if (forth) {
    for (int64_t i = top; i < bottom; i++)
      across(columns.matrix, {pixel(i, 0), kBlock, left, right},
             {between(i, 0), kWide, 0, width}, 0);
    for (int64_t q = 0; q < width; q++)
      down(rows.matrix, {between(0, q), width * kWide, top, bottom},
           {point(0, q), width * kBlock, 0, rows.points}, 0);
  } else {
    for (int64_t p = 0; p < rows.points; p++)
      across(columns.matrix, {point(p, 0), kBlock, 0, columns.points},
             {between(p, 0), kWide, 0, width}, 0);
    for (int64_t j = left; j < right; j++)
      down(rows.matrix, {between(0, j), width * kWide, 0, rows.points},
           {pixel(0, j), columns.size * kBlock, top, bottom},
           tile > 0 && j < t.shared ? rows.pixels : top + t.added);
  }
}

INLINE void transform_lanes(const Transform& t, const Near& near, bool forth, Product down,
                            Product across, Lanes lanes) {
  const int64_t height = t.rows.size, width = t.columns.size;
  const int64_t points = t.rows.points * t.columns.points;
  const bool bf16 = t.pixels.is_bf16;
  // Pixels to be halved come after the row that was left.
  const int64_t before = t.halving && !forth ? t.halving->odd : 0;
  const Near own = {{near.pixels + before * width * kBlock, bf16}, near.points, near.between};
  if (forth && !t.halving) {
    gather(t.pixels, lanes, height * width, 1, own.pixels);
  } else if (forth) {
    typed(bf16, [&](auto number) {
      gather_halved(t, lanes, reinterpret_cast<decltype(number)*>(own.pixels.at));
    });
  } else if (before) {
    gather({t.halving->carry, bf16}, lanes, width, 1, near.pixels);
  } else {
    gather(t.pixels, lanes, t.added * width, 1, own.pixels);
  }
  for (int64_t tile = 0; tile < t.tiles; tile++) {
    const Memory far = {t.points + tile * lanes.all, t.points.is_bf16};
    if (!forth) gather(far, lanes, points, t.tiles, near.points);
    for (int64_t lane = 0; lane < lanes.count; lane += kWide)
      transform_tile(t, own, forth, down, across, tile, lane);
    if (forth) scatter(near.points, lanes, points, t.tiles, far);
  }
  if (forth) return;
  if (!t.halving) return scatter(own.pixels, lanes, height * width, 1, t.pixels);
  typed(bf16, [&](auto number) {
    scatter_halved(reinterpret_cast<const decltype(number)*>(near.pixels.at), t, lanes);
  });
  if ((before + height) % 2)
    scatter({own.pixels + (height - 1) * width * kBlock, bf16}, lanes, width, 1,
            {t.halving->carry, bf16});
}

// 0, or 1 where there is no product of such sizes, or 2 without memory.
inline int transform(const Transform& t, bool forth, int64_t threads) {
  const Product down = find(t.rows, forth), across = find(t.columns, forth);
  if (!down || !across) return 1;
  // Something for every thread to do.
  const int64_t share = (t.lanes + threads - 1) / threads;
  const int64_t some = std::min(kBlock, (share + kWide - 1) / kWide * kWide);
  const int64_t blocks = (t.lanes + some - 1) / some;
  const int64_t pixels = kBlock * (t.rows.size + 1) * t.columns.size * t.pixels.size();
  const int64_t points = kBlock * t.rows.points * t.columns.points * t.points.size();
  int failed = 0;
#pragma omp parallel
  {
    char* const memory = static_cast<char*>(std::aligned_alloc(64, pixels + points));
    alignas(64) float between[kMostPoints * kMostPoints * kWide];
    if (memory == nullptr) {
#pragma omp atomic write
      failed = 2;
    }
    const Near near = {{memory, t.pixels.is_bf16},
                       {memory + pixels, t.points.is_bf16},
                       {reinterpret_cast<char*>(between), false}};
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t first = block * some;
      if (memory != nullptr)
        transform_lanes(t, near, forth, down, across,
                        {t.lanes, first, std::min(some, t.lanes - first)});
    }
    fence();
    std::free(memory);
  }
  return failed;
}

}  // namespace
