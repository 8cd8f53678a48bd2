// A warp of the emulated block: who can go on, who waits for whom, and operations that all lanes of a mask do together.
#pragma once

namespace emulate {

struct Warp;

/// An operation of the lanes in `mask`, carried out for all of them by the last that arrives.
struct Gathering {
  unsigned mask = 0, arrived = 0;
  const char* name = "";
  void (*act)(Warp& warp, unsigned lanes) = nullptr;
};

struct Warp {
  unsigned ready = 0;       // lanes that can go on
  unsigned alive = 0;       // lanes that have not returned
  unsigned at_barrier = 0;  // lanes in __syncthreads
  unsigned open = 0;        // gatherings that are under way
  Gathering gatherings[32];
  void* operands[32];  // what each lane gave, on its stack

  void reset(unsigned lanes) {
    ready = at_barrier = open = 0;
    alive = lanes;
  }
  /// The open gathering of a mask; 32 if there is none.
  unsigned find(unsigned mask) const {
    for (unsigned left = open; left; left &= left - 1) {
      auto slot = (unsigned)__builtin_ctz(left);
      if (gatherings[slot].mask == mask) return slot;
    }
    return 32;
  }
  /// After a lane has returned: carries out what waited for it alone, and tells who can go on.
  unsigned lane_left();
};

// Of the scheduler in block.cpp.
Warp& this_warp();
unsigned this_thread();
/// Goes on with other threads until `release` names this one.
void wait_for_others();
/// Lanes of this warp can go on.
void release(unsigned lanes);
/// Whether all the bytes are shared memory of the block.
bool is_shared(const void* begin, unsigned bytes);

}  // namespace emulate
