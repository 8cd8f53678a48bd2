// The driver's memory: allocations, copies, fills.
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "memory.h"
#include "pinned.h"
#include "settings.h"
#include "stream.h"

using namespace fake;

namespace {

std::mutex pinned_lock;
std::map<const char*, size_t> pinned;

/// Whether the range lies in one allocation.
bool is_range(uint64_t pointer, size_t bytes) {
  Allocation a = allocation_of(pointer);
  return a.begin && pointer + bytes <= a.begin + a.bytes;
}

int copy_to_device(uint64_t to, const void* from, size_t bytes, Stream* stream) {
  if (!bytes) return 0;
  if (!is_range(to, bytes)) return INVALID_VALUE;
  Work work;
  work.name = "a copy to the device";
  work.accesses = {{to, true}};
  if (is_pinned(from)) {
    work.run = [=](uint64_t) { memcpy((void*)to, from, bytes); };
  } else {
    // Pageable memory may be used again when the call returns.
    auto staged = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + bytes);
    work.run = [=](uint64_t) { memcpy((void*)to, staged->data(), bytes); };
  }
  return enqueue(stream, std::move(work));
}

int copy_to_host(void* to, uint64_t from, size_t bytes, Stream* stream) {
  if (!bytes) return 0;
  if (!is_range(from, bytes)) return INVALID_VALUE;
  Work work;
  work.name = "a copy to the host";
  work.accesses = {{from, false}};
  work.run = [=](uint64_t) { memcpy(to, (const void*)from, bytes); };
  if (int error = enqueue(stream, std::move(work))) return error;
  if (is_pinned(to) || stream->capture) return 0;
  return wait_for(stream);  // pageable memory holds the values when the call returns
}

int copy_on_device(uint64_t to, uint64_t from, size_t bytes, Stream* stream) {
  if (!bytes) return 0;
  if (!is_range(to, bytes) || !is_range(from, bytes)) return INVALID_VALUE;
  Work work;
  work.name = "a copy";
  work.accesses = {{from, false}, {to, true}};
  work.run = [=](uint64_t) { memcpy((void*)to, (const void*)from, bytes); };
  return enqueue(stream, std::move(work));
}

int fill(uint64_t to, unsigned char value, size_t bytes, Stream* stream) {
  if (!bytes) return 0;
  if (!is_range(to, bytes)) return INVALID_VALUE;
  Work work;
  work.name = "a fill";
  work.accesses = {{to, true}};
  work.run = [=](uint64_t) { memset((void*)to, value, bytes); };
  return enqueue(stream, std::move(work));
}

}  // namespace

namespace fake {

void* pin(size_t bytes) {
  std::lock_guard<std::mutex> guard(pinned_lock);
  auto* begin = (char*)malloc(bytes);
  if (begin) pinned[begin] = bytes;
  return begin;
}

bool unpin(void* begin) {
  std::lock_guard<std::mutex> guard(pinned_lock);
  if (!pinned.erase((const char*)begin)) return false;
  free(begin);
  return true;
}

bool is_pinned(const void* pointer) {
  std::lock_guard<std::mutex> guard(pinned_lock);
  auto at = pinned.upper_bound((const char*)pointer);
  if (at == pinned.begin()) return false;
  --at;
  return (const char*)pointer < at->first + at->second;
}

}  // namespace fake

FAKE_EXPORT int cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
  FAKE_ENTER();
  if (is_capturing()) return CAPTURE_UNSUPPORTED;
  return allocate(pointer, bytes);
}
FAKE_EXPORT int cuMemFree_v2(uint64_t pointer) {
  FAKE_ENTER();
  if (int error = wait_for_all()) return error;
  return release(pointer);
}
FAKE_EXPORT int cuMemAllocAsync(uint64_t* pointer, size_t bytes, void*) {
  FAKE_ENTER();
  return allocate(pointer, bytes);
}
FAKE_EXPORT int cuMemFreeAsync(uint64_t pointer, void* stream) {
  FAKE_ENTER();
  if (!allocation_of(pointer).begin) return INVALID_VALUE;
  Work work;
  work.name = "a release";
  work.accesses = {{pointer, true}};
  work.run = [=](uint64_t) { release(pointer); };
  return enqueue(stream_of(stream), std::move(work));
}
FAKE_EXPORT int cuMemGetInfo_v2(size_t* free, size_t* total) {
  FAKE_ENTER();
  *total = settings().memory_bytes;
  *free = *total > used_bytes() ? *total - used_bytes() : 0;
  return 0;
}
FAKE_EXPORT int cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
  FAKE_ENTER();
  *pointer = pin(bytes);
  return *pointer ? 0 : 2;
}
FAKE_EXPORT int cuMemFreeHost(void* pointer) {
  FAKE_ENTER();
  if (int error = wait_for_all()) return error;
  return unpin(pointer) ? 0 : INVALID_VALUE;
}

FAKE_EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
  FAKE_ENTER();
  return copy_to_device(to, from, bytes, stream_of(stream));
}
FAKE_EXPORT int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
  FAKE_ENTER();
  return copy_to_host(to, from, bytes, stream_of(stream));
}
FAKE_EXPORT int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
  FAKE_ENTER();
  return copy_on_device(to, from, bytes, stream_of(stream));
}
FAKE_EXPORT int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
  FAKE_ENTER();
  return fill(to, value, bytes, stream_of(stream));
}

// Without a stream: on the null stream, and complete on return.
FAKE_EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
  FAKE_ENTER();
  int error = copy_to_device(to, from, bytes, stream_of(nullptr));
  return error ? error : wait_for(stream_of(nullptr));
}
FAKE_EXPORT int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
  FAKE_ENTER();
  int error = copy_to_host(to, from, bytes, stream_of(nullptr));
  return error ? error : wait_for(stream_of(nullptr));
}
FAKE_EXPORT int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
  FAKE_ENTER();
  return copy_on_device(to, from, bytes, stream_of(nullptr));
}
FAKE_EXPORT int cuMemsetD8_v2(uint64_t to, unsigned char value, size_t bytes) {
  FAKE_ENTER();
  return fill(to, value, bytes, stream_of(nullptr));
}

FAKE_EXPORT int fake_is_device_range(uint64_t pointer, uint64_t bytes) { return is_range(pointer, bytes); }
