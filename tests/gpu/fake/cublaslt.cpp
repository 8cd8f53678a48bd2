// libcublasLt without a GPU: products in f32 and bf16 on a CPU, in the order of the emulated streams. It refuses what
// the real one refuses on an H100 or H200: factors of unequal types, C and a bias of another type than D.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver_stream.h"
#include "product.h"

using namespace fake;

#define FAKE_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15;
constexpr int COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_32F_FAST_TF32 = 77;
constexpr unsigned EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4;

struct Description {
  int compute, scale;
  int transposed[2] = {0, 0};
  unsigned epilogue = EPILOGUE_DEFAULT;
  uint64_t bias = 0;
  int bias_type = -1;  // of D
};

struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t ld;
};

struct Preference {
  uint64_t workspace_bytes = 0;
  unsigned alignments[4] = {256, 256, 256, 256};  // of A, B, C, D
};

/// What an algorithm of ours holds: the problem that it was found for.
struct Algorithm {
  uint64_t magic;
  uint64_t problem;
  unsigned alignments[4];
  uint64_t unused[4];
};
static_assert(sizeof(Algorithm) == 64);
constexpr uint64_t MAGIC = 0x656d756c61746564;

struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

bool is_type(int type) { return type == (int)Type::f32 || type == (int)Type::bf16; }

/// 0, or the status with which the real library turns the problem down.
int refusal(const Description& d, const Layout& a, const Layout& b, const Layout& c, const Layout& out) {
  uint64_t m = d.transposed[0] ? a.columns : a.rows, k = d.transposed[0] ? a.rows : a.columns;
  uint64_t depth = d.transposed[1] ? b.columns : b.rows, n = d.transposed[1] ? b.rows : b.columns;
  if (k != depth || m != out.rows || n != out.columns || c.rows != m || c.columns != n) return INVALID_VALUE;
  if (d.scale != (int)Type::f32) return NOT_SUPPORTED;
  bool is_known = d.compute == COMPUTE_32F || d.compute == COMPUTE_32F_PEDANTIC || d.compute == COMPUTE_32F_FAST_TF32;
  if (!is_known) return NOT_SUPPORTED;
  if (!is_type(a.type) || a.type != b.type || !is_type(out.type) || c.type != out.type) return NOT_SUPPORTED;
  if (a.type == (int)Type::f32 && out.type != (int)Type::f32) return NOT_SUPPORTED;
  if (a.type == (int)Type::bf16 && d.compute == COMPUTE_32F_FAST_TF32) return NOT_SUPPORTED;
  if (d.epilogue != EPILOGUE_DEFAULT && d.epilogue != EPILOGUE_BIAS) return NOT_SUPPORTED;
  if (d.epilogue == EPILOGUE_BIAS && d.bias_type >= 0 && d.bias_type != out.type) return NOT_SUPPORTED;
  return 0;
}

/// A hash of all that an algorithm may depend on.
uint64_t problem_of(const Description& d, const Layout* layouts[4]) {
  uint64_t hash = 0xcbf29ce484222325;
  auto add = [&](uint64_t value) { hash = (hash ^ value) * 0x100000001b3 ^ hash >> 29; };
  add((uint64_t)d.compute), add((uint64_t)d.transposed[0]), add((uint64_t)d.transposed[1]), add(d.epilogue);
  for (int i = 0; i < 4; i++) {
    add((uint64_t)layouts[i]->type), add(layouts[i]->rows), add(layouts[i]->columns), add((uint64_t)layouts[i]->ld);
  }
  return hash;
}

[[noreturn]] void fail(const char* what) {
  fprintf(stderr, "emulated cuBLASLt: %s\n", what);
  abort();
}

void need(uint64_t pointer, const Layout& layout, unsigned alignment, const char* what) {
  uint64_t values = (uint64_t)layout.ld * (layout.columns - 1) + layout.rows;
  if (!fake_is_device_range(pointer, values * (uint64_t)size_of((Type)layout.type))) fail(what);
  if (pointer % alignment) fail("a pointer is less aligned than the algorithm was asked for");
}

}  // namespace

FAKE_EXPORT int cublasLtCreate(void** handle) {
  if (fake_enter()) return 1;  // CUBLAS_STATUS_NOT_INITIALIZED
  *handle = malloc(1);
  return 0;
}
FAKE_EXPORT int cublasLtDestroy(void* handle) {
  free(handle);
  return 0;
}
FAKE_EXPORT size_t cublasLtGetVersion() { return 130000; }
FAKE_EXPORT const char* cublasLtGetStatusName(int status) {
  switch (status) {
    case 0: return "CUBLAS_STATUS_SUCCESS";
    case 1: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "CUBLAS_STATUS_INTERNAL_ERROR";
  }
}
FAKE_EXPORT const char* cublasLtGetStatusString(int status) { return cublasLtGetStatusName(status); }

FAKE_EXPORT int cublasLtMatmulDescCreate(void** description, int compute, int scale) {
  *description = new Description{compute, scale};
  return 0;
}
FAKE_EXPORT int cublasLtMatmulDescDestroy(void* description) {
  delete (Description*)description;
  return 0;
}
FAKE_EXPORT int cublasLtMatmulDescSetAttribute(void* description, int attribute, const void* value, size_t bytes) {
  auto* d = (Description*)description;
  auto take = [&](auto& to) {
    if (bytes != sizeof to) return INVALID_VALUE;
    memcpy(&to, value, sizeof to);
    return 0;
  };
  switch (attribute) {
    case 3: return take(d->transposed[0]);
    case 4: return take(d->transposed[1]);
    case 7: return take(d->epilogue);
    case 8: return take(d->bias);
    case 26: return take(d->bias_type);
    default: return NOT_SUPPORTED;
  }
}

FAKE_EXPORT int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t ld) {
  if (ld < (int64_t)rows || !rows || !columns) return INVALID_VALUE;
  *layout = new Layout{type, rows, columns, ld};
  return 0;
}
FAKE_EXPORT int cublasLtMatrixLayoutDestroy(void* layout) {
  delete (Layout*)layout;
  return 0;
}
FAKE_EXPORT int cublasLtMatrixLayoutSetAttribute(void*, int, const void*, size_t) { return NOT_SUPPORTED; }

FAKE_EXPORT int cublasLtMatmulPreferenceCreate(void** preference) {
  *preference = new Preference;
  return 0;
}
FAKE_EXPORT int cublasLtMatmulPreferenceDestroy(void* preference) {
  delete (Preference*)preference;
  return 0;
}
FAKE_EXPORT int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
  auto* p = (Preference*)preference;
  if (attribute == 1 && bytes == 8) return memcpy(&p->workspace_bytes, value, 8), 0;
  if (attribute >= 5 && attribute <= 8 && bytes == 4) return memcpy(&p->alignments[attribute - 5], value, 4), 0;
  return attribute == 3 ? 0 : NOT_SUPPORTED;  // reduction schemes: ours has one
}

FAKE_EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, void* description, void* a, void* b, void* c, void* out,
                                               void* preference, int num_wanted, void* results, int* num_found) {
  *num_found = 0;
  if (num_wanted < 1) return INVALID_VALUE;
  auto& d = *(Description*)description;
  const Layout* layouts[4] = {(Layout*)a, (Layout*)b, (Layout*)c, (Layout*)out};
  if (int status = refusal(d, *layouts[0], *layouts[1], *layouts[2], *layouts[3])) return status;
  Heuristic found = {};
  found.algorithm.magic = MAGIC;
  found.algorithm.problem = problem_of(d, layouts);
  memcpy(found.algorithm.alignments, ((Preference*)preference)->alignments, sizeof found.algorithm.alignments);
  found.waves = 1;
  memcpy(results, &found, sizeof found);
  *num_found = 1;
  return 0;
}

FAKE_EXPORT int cublasLtMatmul(void*, void* description, const void* alpha, const void* a, void* layout_a,
                               const void* b, void* layout_b, const void* beta, const void* c, void* layout_c,
                               void* out, void* layout_out, const void* algorithm, void* workspace,
                               size_t workspace_bytes, void* stream) {
  if (fake_enter()) return EXECUTION_FAILED;
  auto& d = *(Description*)description;
  auto &la = *(Layout*)layout_a, &lb = *(Layout*)layout_b, &lc = *(Layout*)layout_c, &lo = *(Layout*)layout_out;
  if (int status = refusal(d, la, lb, lc, lo)) return status;
  const Layout* layouts[4] = {&la, &lb, &lc, &lo};
  unsigned alignments[4] = {1, 1, 1, 1};
  if (algorithm) {
    auto& chosen = *(const Algorithm*)algorithm;
    if (chosen.magic != MAGIC || chosen.problem != problem_of(d, layouts)) return NOT_SUPPORTED;
    memcpy(alignments, chosen.alignments, sizeof alignments);
  }
  Product p = {};
  p.m = (int64_t)lo.rows, p.n = (int64_t)lo.columns;
  p.k = (int64_t)(d.transposed[0] ? la.rows : la.columns);
  p.a = {a, (Type)la.type, la.ld, d.transposed[0] != 0};
  p.b = {b, (Type)lb.type, lb.ld, d.transposed[1] != 0};
  p.alpha = *(const float*)alpha, p.beta = *(const float*)beta;
  p.c = c, p.ldc = lc.ld, p.d = out, p.ldd = lo.ld, p.out = (Type)lo.type;
  p.tf32 = d.compute == COMPUTE_32F_FAST_TF32;
  need((uint64_t)a, la, alignments[0], "a product reads A beyond its memory");
  need((uint64_t)b, lb, alignments[1], "a product reads B beyond its memory");
  if (p.beta != 0) need((uint64_t)c, lc, alignments[2], "a product reads C beyond its memory");
  need((uint64_t)out, lo, alignments[3], "a product writes D beyond its memory");
  uint64_t reads[5] = {(uint64_t)a, (uint64_t)b}, writes[3] = {(uint64_t)out};
  int num_reads = 2;
  if (p.beta != 0) reads[num_reads++] = (uint64_t)c;
  if (d.epilogue == EPILOGUE_BIAS) {
    uint64_t bytes = lo.rows * (uint64_t)size_of(p.out);
    if (!fake_is_device_range(d.bias, bytes)) fail("a product reads its bias beyond its memory");
    p.bias = (const void*)d.bias;
    reads[num_reads++] = d.bias;
  }
  if (workspace_bytes) {
    if (!fake_is_device_range((uint64_t)workspace, workspace_bytes)) fail("the workspace is no memory of the device");
    writes[1] = (uint64_t)workspace;  // two streams that share one are told
  }
  auto run = [](void* product) {
    if (!fake_skips("product")) multiply(*(Product*)product);
  };
  auto drop = [](void* product) { delete (Product*)product; };
  return fake_enqueue(stream, "a product", reads, writes, run, new Product(p), drop) ? EXECUTION_FAILED : 0;
}
