// Runs the blocks of a launch: threads of a block are fibers, and only those that meet a barrier get a stack of their
// own.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "runtime.h"

namespace emulate {

struct Kernel;

/// One launch. `args` are pointers to the values of the parameters.
struct Launch {
  const Kernel* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  void** args;
  /// Of the order of blocks, threads and fibers; 0 is plain order.
  uint64_t seed;
};

/// Runs all blocks on this thread of the system; several threads may do so at once.
void run(const Launch& launch);

/// The kernel and its thread that this thread of the system runs now, for messages; empty text if none.
const char* where();

/// Switches between fibers since the process began.
extern std::atomic<uint64_t> num_switches;

/// A small fast generator (splitmix64).
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  /// Below n.
  unsigned below(unsigned n) { return (unsigned)((next() >> 32) * n >> 32); }
};

}  // namespace emulate
