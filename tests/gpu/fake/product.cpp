// Factors are packed as f32 into panels that fit the registers, so that all types and transposes share one loop.
#include "product.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace fake {
namespace {

/// Terms that are summed in registers before they are added to memory.
constexpr int64_t DEPTH = 400;

float from_bf16(uint16_t h) {
  uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

uint16_t to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if (std::isnan(f)) return 0x7fff;
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/// Nearest, ties away from zero, as cvt.rna.tf32.
float to_tf32(float f) {
  if (!std::isfinite(f)) return f;
  uint32_t bits;
  memcpy(&bits, &f, 4);
  bits = (bits + 0x1000) & ~0x1fffu;
  memcpy(&f, &bits, 4);
  return f;
}

float get(const void* values, Type type, int64_t at) {
  return type == Type::f32 ? ((const float*)values)[at] : from_bf16(((const uint16_t*)values)[at]);
}

/// Writes [depth, width] values to `to`, each run of `width` at one place of k; zeros beyond `used`. A value is at
/// from + i * along + k * across.
void pack(float* to, const Factor& factor, int64_t from, int64_t along, int64_t across, int64_t used, int64_t width,
          int64_t depth, bool tf32) {
  auto fill = [&](auto value) {
    for (int64_t k = 0; k < depth; k++) {
      for (int64_t i = 0; i < used; i++) to[k * width + i] = value(from + i * along + k * across);
      for (int64_t i = used; i < width; i++) to[k * width + i] = 0;
    }
  };
  auto* floats = (const float*)factor.values;
  auto* halves = (const uint16_t*)factor.values;
  if (factor.type == Type::bf16) fill([=](int64_t at) { return from_bf16(halves[at]); });
  else if (tf32) fill([=](int64_t at) { return to_tf32(floats[at]); });
  else fill([=](int64_t at) { return floats[at]; });
}

/// sums [columns, rows of two vectors] += a [depth, rows] b [depth, columns].
template <class Vector, int COLUMNS>
__attribute__((always_inline)) inline void tile(float* sums, int64_t ld, const float* a, const float* b,
                                                int64_t depth) {
  constexpr int WIDTH = sizeof(Vector) / 4;
  Vector low[COLUMNS] = {}, high[COLUMNS] = {};
  for (int64_t k = 0; k < depth; k++) {
    Vector first, second;
    memcpy(&first, a + k * 2 * WIDTH, sizeof first);
    memcpy(&second, a + k * 2 * WIDTH + WIDTH, sizeof second);
#pragma GCC unroll 16
    for (int j = 0; j < COLUMNS; j++) {
      low[j] += first * b[k * COLUMNS + j];
      high[j] += second * b[k * COLUMNS + j];
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < COLUMNS; j++) {
    Vector was;
    memcpy(&was, sums + j * ld, sizeof was);
    was += low[j];
    memcpy(sums + j * ld, &was, sizeof was);
    memcpy(&was, sums + j * ld + WIDTH, sizeof was);
    was += high[j];
    memcpy(sums + j * ld + WIDTH, &was, sizeof was);
  }
}

struct Tiling {
  int64_t rows, columns;
  void (*tile)(float* sums, int64_t ld, const float* a, const float* b, int64_t depth);
};

typedef float Vector16 __attribute__((vector_size(64)));
typedef float Vector8 __attribute__((vector_size(32)));
typedef float Vector4 __attribute__((vector_size(16)));

void tile_plain(float* s, int64_t ld, const float* a, const float* b, int64_t depth) {
  tile<Vector4, 4>(s, ld, a, b, depth);
}
#ifdef __x86_64__
[[gnu::target("avx2,fma")]] void tile_avx2(float* s, int64_t ld, const float* a, const float* b, int64_t depth) {
  tile<Vector8, 6>(s, ld, a, b, depth);
}
[[gnu::target("avx512f")]] void tile_avx512(float* s, int64_t ld, const float* a, const float* b, int64_t depth) {
  tile<Vector16, 12>(s, ld, a, b, depth);
}
#endif

Tiling tiling() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f")) return {32, 12, tile_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {16, 6, tile_avx2};
#endif
  return {8, 4, tile_plain};
}

}  // namespace

void multiply(const Product& p) {
  static const Tiling t = tiling();
  int64_t rows = (p.m + t.rows - 1) / t.rows * t.rows, columns = (p.n + t.columns - 1) / t.columns * t.columns;
  std::vector<float> sums((size_t)(rows * columns)), a((size_t)(t.rows * DEPTH)), b((size_t)(columns * DEPTH));
  for (int64_t k = 0; k < p.k; k += DEPTH) {
    int64_t depth = std::min(DEPTH, p.k - k);
    for (int64_t j = 0; j < p.n; j += t.columns) {
      int64_t along = p.b.transposed ? 1 : p.b.ld, across = p.b.transposed ? p.b.ld : 1;
      pack(&b[(size_t)(j * depth)], p.b, j * along + k * across, along, across, std::min(t.columns, p.n - j), t.columns,
           depth, p.tf32);
    }
    for (int64_t i = 0; i < p.m; i += t.rows) {
      int64_t along = p.a.transposed ? p.a.ld : 1, across = p.a.transposed ? 1 : p.a.ld;
      pack(a.data(), p.a, i * along + k * across, along, across, std::min(t.rows, p.m - i), t.rows, depth, p.tf32);
      for (int64_t j = 0; j < p.n; j += t.columns)
        t.tile(&sums[(size_t)(j * rows + i)], rows, a.data(), &b[(size_t)(j * depth)], depth);
    }
  }
  for (int64_t j = 0; j < p.n; j++)
    for (int64_t i = 0; i < p.m; i++) {
      float sum = p.alpha * sums[(size_t)(j * rows + i)];
      if (p.beta != 0) sum += p.beta * get(p.c, p.out, i + j * p.ldc);
      if (p.bias) sum += get(p.bias, p.out, i);
      if (p.out == Type::f32) ((float*)p.d)[i + j * p.ldd] = sum;
      else ((uint16_t*)p.d)[i + j * p.ldd] = to_bf16(sum);
    }
}

}  // namespace fake
