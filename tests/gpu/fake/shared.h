// The shared memory of a block.
#pragma once
#include <cstddef>

namespace emulate {

/// What a launch asks for: it ends where a page begins that nobody may touch.
class DynamicShared {
 public:
  DynamicShared() = default;
  DynamicShared(const DynamicShared&) = delete;
  /// The first of `bytes` bytes, of which the last is the last before the guard page (or one of 15 of padding).
  char* begin(size_t bytes);

 private:
  char* base_ = nullptr;
  size_t capacity_ = 0;
};

/// The variables declared __shared__, of the calling thread of the system. They are the thread-local variables of this
/// library, which has no other but `running`.
struct StaticShared {
  char* begin = nullptr;
  size_t bytes = 0;
};
StaticShared static_shared();
/// Fills them with NaN, and keeps `running`.
void fill_with_nan(StaticShared statics);

}  // namespace emulate
