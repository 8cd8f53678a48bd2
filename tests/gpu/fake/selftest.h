// The part of cuda.h and cublasLt.h that selftest.cpp calls, and short ways to it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

extern "C" {
int cuInit(unsigned);
int cuDeviceGetCount(int*);
int cuGetErrorName(int, const char**);
int cuModuleLoadData(void**, const void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuFuncSetAttribute(void*, int, int);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
int cuMemAlloc_v2(uint64_t*, size_t);
int cuMemFree_v2(uint64_t);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemcpyHtoDAsync_v2(uint64_t, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, uint64_t, size_t, void*);
int cuStreamCreate(void**, unsigned);
int cuStreamDestroy_v2(void*);
int cuStreamSynchronize(void*);
int cuStreamWaitEvent(void*, void*, unsigned);
int cuStreamBeginCapture_v2(void*, int);
int cuStreamEndCapture(void*, void**);
int cuGraphInstantiateWithFlags(void**, void*, unsigned long long);
int cuGraphLaunch(void*, void*);
int cuEventCreate(void**, unsigned);
int cuEventRecord(void*, void*);
int cublasLtMatmulDescCreate(void**, int, int);
int cublasLtMatmulDescSetAttribute(void*, int, const void*, size_t);
int cublasLtMatrixLayoutCreate(void**, int, uint64_t, uint64_t, int64_t);
int cublasLtMatmulPreferenceCreate(void**);
int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t);
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*, int*);
int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*,
                   void*, void*, const void*, void*, size_t, void*);
int nvrtcCreateProgram(void**, const char*, const char*, int, const char* const*, const char* const*);
int nvrtcCompileProgram(void*, int, const char* const*);
int nvrtcGetCUBIN(void*, char*);
void fake_seed(uint64_t);
void fake_lose_after(int64_t);
unsigned fake_missing_waits();
const char* fake_missing_wait();
const char* fake_kernel_signature(const char*);
uint64_t fake_num_switches();
}

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition)) {                                                        \
      printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);           \
      exit(1);                                                                 \
    }                                                                          \
  } while (0)
#define OK(call) CHECK((call) == 0)

inline void* module_of_kernels() {
  static void* module = [] {
    OK(cuInit(0));
    void* loaded;
    OK(cuModuleLoadData(&loaded, "//"));  // as a text of PTX
    return loaded;
  }();
  return module;
}

inline void* new_stream() {
  void* stream;
  OK(cuStreamCreate(&stream, 1));
  return stream;
}

inline void* new_event() {
  void* event;
  OK(cuEventCreate(&event, 0));
  return event;
}

/// Device memory; never freed.
template <class T> struct Buffer {
  uint64_t pointer = 0;
  size_t len;

  explicit Buffer(size_t n) : len(n) { OK(cuMemAlloc_v2(&pointer, n * sizeof(T))); }
  Buffer(const std::vector<T>& values, void* stream) : Buffer(values.size()) {
    OK(cuMemcpyHtoDAsync_v2(pointer, values.data(), len * sizeof(T), stream));
  }
  std::vector<T> read(void* stream) const {
    std::vector<T> values(len);
    OK(cuMemcpyDtoHAsync_v2(values.data(), pointer, len * sizeof(T), stream));
    return values;
  }
};

struct Shape {
  unsigned grid, block, shared_bytes = 0;
};

template <class... A> int try_launch(void* stream, const char* name, Shape shape, A... args) {
  void *function, *places[] = {(void*)&args...};
  OK(cuModuleGetFunction(&function, module_of_kernels(), name));
  return cuLaunchKernel(function, shape.grid, 1, 1, shape.block, 1, 1, shape.shared_bytes, stream, places, nullptr);
}
template <class... A> void launch(void* stream, const char* name, Shape shape, A... args) {
  OK(try_launch(stream, name, shape, args...));
}

inline std::vector<float> numbers(size_t n, unsigned seed) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; i++) {
    uint32_t bits = ((uint32_t)i + 1) * 2654435761u ^ seed * 40503u * 65537u;
    bits = (bits ^ bits >> 15) * 2246822519u;
    values[i] = (float)(bits >> 8) / 8388608.0f - 1.0f;
  }
  return values;
}
inline uint16_t to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_bf16(uint16_t h) {
  uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
