// libcuda without a GPU: the device, its context, modules and kernels. Functions are declared as in cuda.h with plain
// types; those that mlomae and cudarc call are here and in driver_memory.cpp and driver_stream.cpp, others are missing.
#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "block.h"
#include "image.h"
#include "kernel.h"
#include "memory.h"
#include "pinned.h"
#include "settings.h"
#include "stream.h"

using namespace fake;

namespace {

constexpr int OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200, NOT_FOUND = 500,
              NOT_SUPPORTED = 801, OUT_OF_RESOURCES = 701;

struct Error {
  int code;
  const char *name, *text;
};
const Error ERRORS[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const Error* find_error(int code) {
  for (const Error& error : ERRORS)
    if (error.code == code) return &error;
  return nullptr;
}

/// The context of this thread; not a thread-local variable, since those are the shared memory of kernels (block.cpp).
pthread_key_t context_key() {
  static pthread_key_t key = [] {
    pthread_key_t made;
    pthread_key_create(&made, nullptr);
    return made;
  }();
  return key;
}

char the_context, the_module;  // only their addresses count

/// Shared memory of a block without and with asking, as on an H100.
constexpr int DEFAULT_SHARED_BYTES = 48 << 10, MAX_SHARED_BYTES = 227 << 10;

struct Function {
  const emulate::Kernel* kernel;
  int shared_bytes = DEFAULT_SHARED_BYTES;
};

const emulate::Kernel* find_kernel(const char* name) {
  for (const emulate::Kernel* k = emulate::kernels; k->name; k++)
    if (!strcmp(k->name, name)) return k;
  return nullptr;
}

[[noreturn]] void fail(const char* kernel, const char* text, size_t parameter) {
  fprintf(stderr, "emulated GPU: kernel %s: %s (parameter %zu)\n", kernel, text, parameter);
  abort();
}

/// The memory that a launch touches; ends the process for a pointer that is none of the device.
std::vector<Access> accesses_of(const emulate::Kernel& kernel, const std::vector<uint64_t>& values) {
  std::vector<Access> accesses;
  for (size_t i = 0; i < values.size(); i++) {
    char letter = kernel.signature[i];
    if ((letter != 'r' && letter != 'w') || !values[i]) continue;
    bool is_known = allocation_of(values[i]).begin || is_pinned((void*)values[i]);
    if (!is_known) fail(kernel.name, "no pointer to the device's memory", i);
    accesses.push_back({values[i], letter == 'w'});
  }
  return accesses;
}

}  // namespace

FAKE_EXPORT int cuInit(unsigned) {
  watch_faults();
  return settings().has_no_device ? NO_DEVICE : 0;
}
FAKE_EXPORT int cuDriverGetVersion(int* version) {
  *version = settings().driver_version;
  return 0;
}
// NVRTC asks for tables of functions that are no part of the interface, and does without them.
FAKE_EXPORT int cuGetExportTable(const void** table, const void*) {
  *table = nullptr;
  return NOT_FOUND;
}
FAKE_EXPORT int cuGetErrorName(int code, const char** name) {
  const Error* error = find_error(code);
  *name = error ? error->name : nullptr;
  return error ? 0 : INVALID_VALUE;
}
FAKE_EXPORT int cuGetErrorString(int code, const char** text) {
  const Error* error = find_error(code);
  *text = error ? error->text : nullptr;
  return error ? 0 : INVALID_VALUE;
}

FAKE_EXPORT int cuDeviceGetCount(int* count) {
  *count = settings().has_no_device ? 0 : 1;
  return 0;
}
FAKE_EXPORT int cuDeviceGet(int* device, int ordinal) {
  if (ordinal != 0 || settings().has_no_device) return INVALID_DEVICE;
  *device = 0;
  return 0;
}
FAKE_EXPORT int cuDeviceGetName(char* name, int len, int) {
  snprintf(name, (size_t)len, "emulated GPU");
  return 0;
}
FAKE_EXPORT int cuDeviceGetUuid_v2(char* uuid, int) {
  memset(uuid, 0, 16);
  return 0;
}
FAKE_EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = settings().memory_bytes;
  return 0;
}
FAKE_EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 1: *value = 1024; break;  // threads of a block
    case 8: *value = DEFAULT_SHARED_BYTES; break;
    case 10: *value = 32; break;  // threads of a warp
    case 16: *value = settings().num_sms; break;
    case 39: *value = 2048; break;  // threads of a multiprocessor
    case 75: *value = settings().major; break;
    case 76: *value = settings().minor; break;
    case 81: *value = MAX_SHARED_BYTES + 1024; break;  // of a multiprocessor
    case 97: *value = MAX_SHARED_BYTES; break;
    default: *value = 1;
  }
  return 0;
}

FAKE_EXPORT int cuDevicePrimaryCtxRetain(void** context, int) {
  FAKE_ENTER();
  *context = &the_context;
  return 0;
}
FAKE_EXPORT int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
FAKE_EXPORT int cuCtxGetCurrent(void** context) {
  *context = pthread_getspecific(context_key());
  return 0;
}
FAKE_EXPORT int cuCtxSetCurrent(void* context) {
  FAKE_ENTER();
  pthread_setspecific(context_key(), context);
  return 0;
}
FAKE_EXPORT int cuCtxSynchronize() {
  FAKE_ENTER();
  return wait_for_all();
}
FAKE_EXPORT int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return 0;
}
FAKE_EXPORT int cuCtxSetLimit(int, size_t) { return 0; }
FAKE_EXPORT int cuCtxSetFlags(unsigned) { return 0; }
FAKE_EXPORT int cuProfilerStart() { return 0; }
FAKE_EXPORT int cuProfilerStop() { return 0; }

FAKE_EXPORT int cuModuleLoadData(void** module, const void* image) {
  FAKE_ENTER();
  auto* text = (const char*)image;
  // Images of the real compiler, and texts of PTX, cannot be run; the kernels of the same name stand for them.
  bool is_real = !memcmp(text, "\x7f" "ELF", 4) || !strncmp(text, "//", 2);
  if (!is_real && strncmp(text, IMAGE_PREFIX, strlen(IMAGE_PREFIX))) return INVALID_IMAGE;
  if (!is_real && strcmp(text + strlen(IMAGE_PREFIX), KERNELS_HASH)) {
    fprintf(stderr, "emulated GPU: the libraries were built from other kernels than the program (%s, not %s)\n",
            KERNELS_HASH, text + strlen(IMAGE_PREFIX));
    return INVALID_IMAGE;
  }
  *module = &the_module;
  return 0;
}
FAKE_EXPORT int cuModuleUnload(void*) { return 0; }

FAKE_EXPORT int cuModuleGetFunction(void** function, void* module, const char* name) {
  FAKE_ENTER();
  static std::mutex lock;
  static std::map<std::string, Function> functions;
  std::lock_guard<std::mutex> guard(lock);
  const emulate::Kernel* kernel = find_kernel(name);
  if (module != &the_module) return INVALID_HANDLE;
  if (!kernel) return NOT_FOUND;
  *function = &functions.try_emplace(name, Function{kernel}).first->second;
  return 0;
}
FAKE_EXPORT int cuFuncSetAttribute(void* function, int attribute, int value) {
  FAKE_ENTER();
  if (attribute != 8) return 0;  // only the dynamic shared memory counts
  if (value < 0 || value > MAX_SHARED_BYTES) return INVALID_VALUE;
  ((Function*)function)->shared_bytes = value;
  return 0;
}
FAKE_EXPORT int cuFuncGetAttribute(int* value, int attribute, void* function) {
  auto* f = (Function*)function;
  *value = attribute == 0 ? (int)f->kernel->max_threads : attribute == 8 ? f->shared_bytes : 0;
  return 0;
}

FAKE_EXPORT int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** params,
                               void**) {
  FAKE_ENTER();
  auto* f = (Function*)function;
  const emulate::Kernel* kernel = f->kernel;
  if (!grid_x || !grid_y || !grid_z || !block_x || !block_y || !block_z) return INVALID_VALUE;
  if (grid_x > 0x7fffffffu || grid_y > 65535 || grid_z > 65535) return INVALID_VALUE;
  uint64_t threads = (uint64_t)block_x * block_y * block_z;
  if (threads > 1024 || (int)shared_bytes > f->shared_bytes) return INVALID_VALUE;
  if (threads > kernel->max_threads) return OUT_OF_RESOURCES;
  std::vector<uint64_t> values(strlen(kernel->signature));
  for (size_t i = 0; i < values.size(); i++) memcpy(&values[i], params[i], strchr("iuf", kernel->signature[i]) ? 4 : 8);
  Work work;
  work.name = kernel->name;
  work.accesses = accesses_of(*kernel, values);
  auto accesses = work.accesses;
  dim3 grid{grid_x, grid_y, grid_z}, block{block_x, block_y, block_z};
  work.run = [=](uint64_t seed) mutable {
    if (fake_skips(kernel->name)) return;
    std::vector<void*> args;
    for (uint64_t& value : values) args.push_back(&value);
    emulate::run({kernel, grid, block, shared_bytes, args.data(), seed});
    for (const Access& access : accesses) {
      Allocation a = allocation_of(access.pointer);
      if (access.writes && a.begin && !is_end_intact(a)) fail(kernel->name, "writes beyond the end of its memory", 0);
    }
  };
  return enqueue(stream_of(stream), std::move(work));
}
FAKE_EXPORT int cuLaunchHostFunc(void* stream, void (*call)(void*), void* data) {
  FAKE_ENTER();
  Work work;
  work.name = "a call of the host";
  work.run = [=](uint64_t) { call(data); };
  return enqueue(stream_of(stream), std::move(work));
}

/// The parameters of a kernel, a letter each (kernel.h); null if there is no such kernel.
FAKE_EXPORT const char* fake_kernel_signature(const char* name) {
  const emulate::Kernel* kernel = find_kernel(name);
  return kernel ? kernel->signature : nullptr;
}
/// The name of the n-th kernel; null behind the last.
FAKE_EXPORT const char* fake_kernel_name(unsigned n) {
  for (unsigned i = 0; i < n; i++)
    if (!emulate::kernels[i].name) return nullptr;
  return emulate::kernels[n].name;
}
/// Switches between fibers so far.
FAKE_EXPORT uint64_t fake_num_switches() { return emulate::num_switches; }
