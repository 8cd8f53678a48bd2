// What emulate.h tells kernels to call: the running thread and its dealings with others.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulate {
/// What a kernel sees of the launch; `thread` changes with the fiber that runs.
struct Running {
  uint3 thread, block_index;
  dim3 block, grid;
  char* shared;
};
extern thread_local Running* running;

void block_barrier();
int block_vote(int predicate, int kind);  // 0 any, 1 all, 2 count
void warp_barrier(unsigned mask);
uint64_t shuffle(unsigned mask, uint64_t value, unsigned from);
unsigned ballot(unsigned mask, bool predicate);
unsigned lane();
void mma_bf16(float* d, const unsigned* a, const unsigned* b);
void load_matrices(unsigned* r, const void* row, bool transposed);
void copy_async(void* shared, const void* global, bool present);
void wait_for_copies();
[[noreturn]] void trap(const char* why);

template <class T> T shuffled(unsigned mask, T value, unsigned from) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = shuffle(mask, bits, from);
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <class To, class From> To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace emulate
