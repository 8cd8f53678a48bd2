// Products of the emulated libcublasLt, column-major.
#pragma once
#include <cstdint>

namespace fake {

enum class Type : int { f32 = 0, bf16 = 14 };  // numbers of cudaDataType

struct Factor {
  const void* values;
  Type type;
  int64_t ld;
  bool transposed;
};

/// d [m, n] = alpha op(a) [m, k] op(b) [k, n] + beta c + bias (one for a row). Sums are f32 and in the order of k, four
/// hundred at a time; the size of tiles does not show.
struct Product {
  int64_t m, n, k;
  Factor a, b;
  float alpha, beta;
  const void* c;
  int64_t ldc;
  const void* bias;  // null for none; of the type of d
  void* d;
  int64_t ldd;
  Type out;
  /// Rounds f32 factors to 10 bits of mantissa.
  bool tf32;
};

void multiply(const Product& product);

inline int64_t size_of(Type type) { return type == Type::f32 ? 4 : 2; }

}  // namespace fake
