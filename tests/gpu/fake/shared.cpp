#include "shared.h"

#include <link.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "runtime.h"

namespace emulate {
namespace {

constexpr size_t PAGE = 4096;

/// Where `running` lies among the thread-local variables of this library, and the size of all; the same in each thread.
struct Layout {
  size_t place_of_running = 0, bytes = 0;
};

int find_layout(dl_phdr_info* info, size_t, void* found) {
  auto own = (uintptr_t)&find_layout - info->dlpi_addr;
  const ElfW(Phdr)* variables = nullptr;
  bool is_own = false;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& part = info->dlpi_phdr[i];
    if (part.p_type == PT_TLS) variables = &part;
    if (part.p_type == PT_LOAD && own - part.p_vaddr < part.p_memsz) is_own = true;
  }
  if (is_own && variables && info->dlpi_tls_data)
    *(Layout*)found = {(size_t)((char*)&running - (char*)info->dlpi_tls_data), variables->p_memsz};
  return is_own;
}

}  // namespace

char* DynamicShared::begin(size_t bytes) {
  bytes = (bytes + 15) / 16 * 16;
  if (bytes > capacity_ || !base_) {
    if (base_) munmap(base_, capacity_ + PAGE);
    capacity_ = (bytes + PAGE - 1) / PAGE * PAGE;
    base_ = (char*)mmap(nullptr, capacity_ + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED || mprotect(base_ + capacity_, PAGE, PROT_NONE)) {
      perror("emulated GPU: no shared memory");
      abort();
    }
  }
  return base_ + capacity_ - bytes;
}

StaticShared static_shared() {
  running = nullptr;  // touched, so that this thread has the variables
  static const Layout layout = [] {
    Layout found;
    dl_iterate_phdr(find_layout, &found);
    return found;
  }();
  return {(char*)&running - layout.place_of_running, layout.bytes};
}

void fill_with_nan(StaticShared statics) {
  Running* kept = running;
  memset(statics.begin, 0xff, statics.bytes);
  running = kept;
}

}  // namespace emulate
