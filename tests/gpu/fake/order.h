// Which work is ordered after which, by vector clocks: two streams may touch the same memory, one of them writing, only
// if an event or the host orders them. Work counts as waited for once a call of the host has waited for it; that it has
// happened to run is not enough.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace fake {

/// How far into each stream one has seen.
using Clock = std::vector<uint64_t>;

struct Access {
  uint64_t pointer;
  bool writes;
};

/// Checks work that is enqueued now on `stream`, whose clock is `clock`, and remembers it.
void check_order(unsigned stream, const Clock& clock, const std::string& name, const std::vector<Access>& accesses);
/// The host has waited for all that the clock has seen.
void host_has_seen(const Clock& clock);
void merge(Clock& into, const Clock& from);

/// Waits that were missing so far.
unsigned num_missing_waits();

}  // namespace fake
