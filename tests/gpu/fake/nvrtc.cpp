// libnvrtc without a compiler: an image that names the source, so that the emulated driver can tell whether its kernels
// were built from the same. What the real compiler says of the kernels is checked by tests/gpu/nvrtc_check.py.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

#include "image.h"

#define FAKE_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int INVALID_INPUT = 3, COMPILATION = 6;

struct Program {
  std::string source, log, image;
};

/// FNV-1a, as in dataflow/device/src/testing.
std::string hash_of(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3;
  char hex[17];
  snprintf(hex, sizeof hex, "%016llx", (unsigned long long)hash);
  return hex;
}

int give_size(size_t* size, const std::string& text) {
  *size = text.size() + 1;
  return 0;
}

int give(char* to, const std::string& text) {
  memcpy(to, text.c_str(), text.size() + 1);
  return 0;
}

}  // namespace

// No real compiler has this version, so an image of ours in the cache is never taken for a real one.
FAKE_EXPORT int nvrtcVersion(int* major, int* minor) {
  *major = 13;
  *minor = 99;
  return 0;
}
FAKE_EXPORT const char* nvrtcGetErrorString(int status) {
  switch (status) {
    case 0: return "NVRTC_SUCCESS";
    case INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
    case COMPILATION: return "NVRTC_ERROR_COMPILATION";
    default: return "NVRTC_ERROR_INTERNAL_ERROR";
  }
}

FAKE_EXPORT int nvrtcCreateProgram(void** program, const char* source, const char*, int, const char* const*,
                                   const char* const*) {
  *program = new Program{source, "", ""};
  return 0;
}
FAKE_EXPORT int nvrtcDestroyProgram(void** program) {
  delete (Program*)*program;
  *program = nullptr;
  return 0;
}
FAKE_EXPORT int nvrtcCompileProgram(void* program, int, const char* const*) {
  auto& p = *(Program*)program;
  // A test of the message for a compiler's refusal needs one.
  if (p.source.find("#error") != std::string::npos) {
    p.log = "mlomae.cu(1): error: #error directive\n";
    return COMPILATION;
  }
  p.image = IMAGE_PREFIX + hash_of(p.source);
  return 0;
}
FAKE_EXPORT int nvrtcGetCUBINSize(void* program, size_t* size) { return give_size(size, ((Program*)program)->image); }
FAKE_EXPORT int nvrtcGetCUBIN(void* program, char* to) { return give(to, ((Program*)program)->image); }
FAKE_EXPORT int nvrtcGetPTXSize(void* program, size_t* size) { return give_size(size, ((Program*)program)->image); }
FAKE_EXPORT int nvrtcGetPTX(void* program, char* to) { return give(to, ((Program*)program)->image); }
FAKE_EXPORT int nvrtcGetProgramLogSize(void* program, size_t* size) {
  return give_size(size, ((Program*)program)->log);
}
FAKE_EXPORT int nvrtcGetProgramLog(void* program, char* to) { return give(to, ((Program*)program)->log); }
