// The memory of the emulated device. Each allocation ends where a page begins that nobody may touch, and starts as NaN;
// what was freed is never given out again. So an access outside a live allocation ends the process with a line.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fake {

/// Of the driver: 0, 2 if the device has too little memory left, 1 for nonsense.
int allocate(uint64_t* pointer, size_t bytes);
int release(uint64_t pointer);

struct Allocation {
  uint64_t begin = 0;  // 0: none
  size_t bytes = 0;
  unsigned number = 0;  // the how-manieth
};

/// The live allocation that a pointer is in, or at the end of.
Allocation allocation_of(uint64_t pointer);
/// Whether the bytes after the allocation's end, up to the guard page, are as they were.
bool is_end_intact(const Allocation& allocation);

uint64_t used_bytes();
uint64_t peak_bytes();

/// Takes over SIGSEGV to say what was touched; called once.
void watch_faults();

}  // namespace fake
