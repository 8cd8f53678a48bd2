// All functions are called with the lock of stream.cpp held.
#include "order.h"

#include <cstdio>
#include <cstdlib>
#include <map>

#include "memory.h"
#include "settings.h"

namespace fake {
namespace {

struct Use {
  unsigned stream;
  uint64_t at;
  std::string name;
};

struct History {
  unsigned number = 0;  // of the allocation
  bool is_written = false;
  Use write;
  std::map<unsigned, Use> reads;  // the last of each stream since the write
};

std::map<uint64_t, History> histories;  // by begin of the allocation
Clock waited_for;
unsigned num_missing = 0;
char message[512];

uint64_t at(const Clock& clock, unsigned stream) { return stream < clock.size() ? clock[stream] : 0; }

void report(const std::string& name, unsigned stream, const char* does, const Allocation& what, const char* did,
            const Use& use) {
  num_missing++;
  snprintf(message, sizeof message,
           "emulated GPU: a wait is missing: %s on stream %u %s allocation %u of %zu bytes, which %s on stream %u %s",
           name.c_str(), stream, does, what.number, what.bytes, use.name.c_str(), use.stream, did);
  if (settings().check != Settings::Check::abort) return;
  fprintf(stderr, "%s\n", message);
  abort();
}

}  // namespace

void merge(Clock& into, const Clock& from) {
  if (into.size() < from.size()) into.resize(from.size());
  for (size_t i = 0; i < from.size(); i++)
    if (from[i] > into[i]) into[i] = from[i];
}

void host_has_seen(const Clock& clock) { merge(waited_for, clock); }

void check_order(unsigned stream, const Clock& clock, const std::string& name, const std::vector<Access>& accesses) {
  if (settings().check == Settings::Check::off) return;
  auto is_seen = [&](const Use& use) {
    return at(clock, use.stream) >= use.at || at(waited_for, use.stream) >= use.at;
  };
  for (const Access& access : accesses) {
    Allocation what = allocation_of(access.pointer);
    if (!what.begin) continue;
    History& history = histories[what.begin];
    if (history.number != what.number) history = History{what.number, false, {}, {}};
    const char* does = access.writes ? "writes" : "reads";
    if (history.is_written && !is_seen(history.write)) report(name, stream, does, what, "writes", history.write);
    if (access.writes)
      for (const auto& [other, read] : history.reads)
        if (!is_seen(read)) report(name, stream, does, what, "reads", read);
  }
  for (const Access& access : accesses) {
    Allocation what = allocation_of(access.pointer);
    if (!what.begin) continue;
    History& history = histories[what.begin];
    Use use{stream, at(clock, stream), name};
    if (access.writes) {
      history.is_written = true;
      history.write = use;
      history.reads.clear();
    } else {
      history.reads[stream] = use;
    }
  }
}

unsigned num_missing_waits() { return num_missing; }

}  // namespace fake

FAKE_EXPORT unsigned fake_missing_waits() { return fake::num_missing_waits(); }
/// The last one in words.
FAKE_EXPORT const char* fake_missing_wait() { return fake::message; }
