// Fibers: stacks that one thread of the system switches between.
#pragma once
#include <cstddef>

namespace emulate {

/// A stack with a guard page below it. `saved` is where it was left.
struct Fiber {
  void* saved = nullptr;
  void* context = nullptr;  // where there is no assembly
  char* top = nullptr;
};

/// A fiber that begins with `entry` when it is first switched to. `entry` never returns. Stacks of neighbours are
/// placed so that their tops fall in different sets of the caches.
Fiber* new_fiber(void (*entry)());
/// Lets a fiber begin anew; what was on its stack is forgotten.
void rewind_fiber(Fiber* fiber, void (*entry)());
/// Saves where this one is and goes on with the other. Takes some 10 ns if the stacks are cached.
void switch_fiber(Fiber* from, Fiber* to);

}  // namespace emulate
