#include "memory.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "block.h"
#include "settings.h"

namespace fake {
namespace {

constexpr uint64_t PAGE = 4096, CHUNK = 4 << 20, WINDOW = 1ull << 40;
constexpr unsigned char AFTER_END = 0xa5;

struct Memory {
  std::mutex lock;
  std::map<uint64_t, Allocation> live;  // by begin
  uint64_t window = 0, next = 0;        // addresses that nobody else has; each is used once
  int nans = -1;                        // a file of 0xff bytes: mapped privately, a page is NaN until it is written
  uint64_t used = 0, peak = 0;
  unsigned num_allocations = 0;

  Memory() {
    void* base = mmap(nullptr, WINDOW, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    nans = memfd_create("nan", MFD_CLOEXEC);
    if (base == MAP_FAILED || nans < 0 || ftruncate(nans, CHUNK)) fail("no address space");
    window = next = (uint64_t)base;
    void* bytes = mmap(nullptr, CHUNK, PROT_WRITE, MAP_SHARED, nans, 0);
    if (bytes == MAP_FAILED) fail("no memory");
    memset(bytes, 0xff, CHUNK);
    munmap(bytes, CHUNK);
  }

  [[noreturn]] static void fail(const char* what) {
    fprintf(stderr, "emulated GPU: %s\n", what);
    abort();
  }
};

Memory& memory() {
  static Memory* all = new Memory;  // used by threads until the process ends
  return *all;
}

uint64_t pages(uint64_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

/// The last live allocation that begins at or before a pointer.
Allocation before(Memory& m, uint64_t pointer) {
  auto at = m.live.upper_bound(pointer);
  return at == m.live.begin() ? Allocation{} : std::prev(at)->second;
}

struct sigaction previous;

void explain_fault(int signal, siginfo_t* info, void* context) {
  Memory& m = memory();
  auto address = (uint64_t)info->si_addr;
  bool is_device = address >= m.window && address < m.window + WINDOW;
  if (!is_device && !emulate::running) {
    if (previous.sa_flags & SA_SIGINFO) return previous.sa_sigaction(signal, info, context);
    sigaction(signal, &previous, nullptr);
    return;
  }
  char text[512];
  const char* who = emulate::running ? emulate::where() : "the host";
  Allocation near;
  if (m.lock.try_lock()) {
    near = before(m, address);
    m.lock.unlock();
  }
  if (!is_device) {
    bool is_odd = info->si_code == SI_KERNEL;
    const char* what = is_odd ? "a misaligned vector, or an address that is none" : "no device memory";
    snprintf(text, sizeof text, "emulated GPU: %s touches %s (%p)\n", who, what, info->si_addr);
  } else if (near.begin && address < near.begin + near.bytes + PAGE) {
    snprintf(text, sizeof text, "emulated GPU: %s touches byte %zu of an allocation of %zu bytes\n", who,
             (size_t)(address - near.begin), near.bytes);
  } else {
    snprintf(text, sizeof text, "emulated GPU: %s touches freed memory, or none that was ever allocated (%p)\n", who,
             info->si_addr);
  }
  if (write(2, text, strlen(text)) < 0) {}
  ::signal(signal, SIG_DFL);  // returns to the access, which ends the process
}

}  // namespace

int allocate(uint64_t* pointer, size_t bytes) {
  if (!bytes) return 1;
  Memory& m = memory();
  std::lock_guard<std::mutex> guard(m.lock);
  if (m.used + bytes > settings().memory_bytes) return 2;
  uint64_t size = pages(bytes), at = m.next;
  if (at + size + PAGE > m.window + WINDOW) Memory::fail("a terabyte of addresses is used up");
  for (uint64_t done = 0; done < size; done += CHUNK) {
    void* part = mmap((void*)(at + done), std::min(CHUNK, size - done), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, m.nans, 0);
    if (part == MAP_FAILED) return 2;
  }
  m.next = at + size + PAGE;
  Allocation made{at + size - (bytes + 15) / 16 * 16, bytes, ++m.num_allocations};
  memset((void*)(made.begin + bytes), AFTER_END, at + size - made.begin - bytes);
  m.live[made.begin] = made;
  m.used += bytes;
  m.peak = std::max(m.peak, m.used);
  *pointer = made.begin;
  return 0;
}

int release(uint64_t pointer) {
  if (!pointer) return 0;
  Memory& m = memory();
  std::lock_guard<std::mutex> guard(m.lock);
  auto found = m.live.find(pointer);
  if (found == m.live.end()) return 1;
  Allocation old = found->second;
  m.live.erase(found);
  m.used -= old.bytes;
  uint64_t begin = old.begin / PAGE * PAGE, end = pages(old.begin + old.bytes);
  mmap((void*)begin, end - begin, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  return 0;
}

Allocation allocation_of(uint64_t pointer) {
  Memory& m = memory();
  std::lock_guard<std::mutex> guard(m.lock);
  Allocation found = before(m, pointer);
  return found.begin && pointer <= found.begin + found.bytes ? found : Allocation{};
}

bool is_end_intact(const Allocation& a) {
  auto* end = (const unsigned char*)(a.begin + a.bytes);
  for (; (uint64_t)end % 16; end++)
    if (*end != AFTER_END) return false;
  return true;
}

uint64_t used_bytes() {
  std::lock_guard<std::mutex> guard(memory().lock);
  return memory().used;
}

uint64_t peak_bytes() {
  std::lock_guard<std::mutex> guard(memory().lock);
  return memory().peak;
}

void watch_faults() {
  static std::once_flag once;
  std::call_once(once, [] {
    memory();
    struct sigaction action = {};
    action.sa_sigaction = explain_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &previous);
    sigaction(SIGBUS, &action, nullptr);
  });
}

}  // namespace fake

FAKE_EXPORT uint64_t fake_used_bytes() { return fake::used_bytes(); }
FAKE_EXPORT uint64_t fake_peak_bytes() { return fake::peak_bytes(); }
