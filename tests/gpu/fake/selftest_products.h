// Cases of selftest.cpp about cuBLASLt, and speeds.
#pragma once
#include <ctime>

#include "selftest.h"

namespace {

constexpr int F32 = 0, BF16 = 14, COMPUTE_F32 = 68, COMPUTE_TF32 = 77;

/// d [m, n] = op(a) op(b) (+ d) (+ bias), column-major and without gaps.
struct Problem {
  int64_t m, n, k;
  bool transposed_a, transposed_b;
  int in = F32, out = F32, compute = COMPUTE_F32, c = -1, bias = -1;
  bool accumulates = false;
  unsigned alignment = 16;
};

struct Plan {
  void *description, *a, *b, *c, *out;
  char found[96];
  int status;

  explicit Plan(const Problem& p) {
    OK(cublasLtMatmulDescCreate(&description, p.compute, F32));
    int ta = p.transposed_a, tb = p.transposed_b;
    OK(cublasLtMatmulDescSetAttribute(description, 3, &ta, 4));
    OK(cublasLtMatmulDescSetAttribute(description, 4, &tb, 4));
    if (p.bias >= 0) {
      unsigned epilogue = 4;
      OK(cublasLtMatmulDescSetAttribute(description, 7, &epilogue, 4));
      OK(cublasLtMatmulDescSetAttribute(description, 26, &p.bias, 4));
    }
    auto layout = [](void** made, int type, int64_t rows, int64_t columns, bool transposed) {
      if (transposed) std::swap(rows, columns);
      OK(cublasLtMatrixLayoutCreate(made, type, (uint64_t)rows, (uint64_t)columns, rows));
    };
    layout(&a, p.in, p.m, p.k, p.transposed_a);
    layout(&b, p.in, p.k, p.n, p.transposed_b);
    layout(&out, p.out, p.m, p.n, false);
    layout(&c, p.c < 0 ? p.out : p.c, p.m, p.n, false);
    void* preference;
    OK(cublasLtMatmulPreferenceCreate(&preference));
    for (int i = 5; i < 9; i++) OK(cublasLtMatmulPreferenceSetAttribute(preference, i, &p.alignment, 4));
    int num_found;
    status = cublasLtMatmulAlgoGetHeuristic(nullptr, description, a, b, c, out, preference, 1, found, &num_found);
    CHECK(num_found == (status == 0));
  }
};

/// Values as the device holds them in a type.
struct Values {
  std::vector<float> floats;
  std::vector<uint16_t> halves;
  uint64_t pointer;

  Values(int64_t len, int type, unsigned seed, void* stream) : floats(numbers((size_t)len, seed)) {
    if (type == F32) {
      pointer = Buffer<float>(floats, stream).pointer;
      return;
    }
    for (float& f : floats) {
      halves.push_back(to_bf16(f));
      f = from_bf16(halves.back());
    }
    pointer = Buffer<uint16_t>(halves, stream).pointer;
  }
};

double multiply(const Problem& p, void* stream, uint64_t workspace = 0) {
  Plan plan(p);
  OK(plan.status);
  Values a(p.m * p.k, p.in, 1, stream), b(p.k * p.n, p.in, 2, stream), bias(p.m, p.out, 3, stream);
  Values d(p.m * p.n, p.out, 4, stream);
  if (p.bias >= 0) OK(cublasLtMatmulDescSetAttribute(plan.description, 8, &bias.pointer, 8));
  float alpha = 1, beta = p.accumulates;
  OK(cublasLtMatmul(nullptr, plan.description, &alpha, (void*)a.pointer, plan.a, (void*)b.pointer, plan.b, &beta,
                    (void*)d.pointer, plan.c, (void*)d.pointer, plan.out, plan.found, (void*)workspace,
                    workspace ? 256 : 0, stream));
  std::vector<float> got((size_t)(p.m * p.n));
  std::vector<uint16_t> halves(got.size());
  if (p.out == F32) OK(cuMemcpyDtoHAsync_v2(got.data(), d.pointer, got.size() * 4, stream));
  else OK(cuMemcpyDtoHAsync_v2(halves.data(), d.pointer, got.size() * 2, stream));
  double error = 0, size = 0;
  for (int64_t j = 0; j < p.n; j++)
    for (int64_t i = 0; i < p.m; i++) {
      double sum = p.bias >= 0 ? bias.floats[(size_t)i] : 0;
      size_t at = (size_t)(i + j * p.m);
      if (p.accumulates) sum += d.floats[at];
      for (int64_t k = 0; k < p.k; k++)
        sum += (double)a.floats[(size_t)(p.transposed_a ? k + i * p.k : i + k * p.m)] *
               b.floats[(size_t)(p.transposed_b ? j + k * p.n : k + j * p.k)];
      float value = p.out == F32 ? got[at] : from_bf16(halves[at]);
      error += (value - sum) * (value - sum), size += sum * sum;
    }
  return std::sqrt(error / size);
}

void products_are_right() {
  void* stream = new_stream();
  const int64_t shapes[][3] = {{1, 1, 1}, {33, 13, 7}, {5, 100, 401}, {70, 25, 900}};
  for (auto [m, n, k] : shapes)
    for (int transposes = 0; transposes < 4; transposes++) {
      Problem p{m, n, k, (transposes & 1) != 0, (transposes & 2) != 0};
      CHECK(multiply(p, stream) < 1e-6);
      p.accumulates = true, p.bias = F32;
      CHECK(multiply(p, stream) < 1e-6);
      p.compute = COMPUTE_TF32;
      double rounded = multiply(p, stream);
      CHECK(rounded < 1e-3 && (rounded > 1e-6 || k < 10));
      p.compute = COMPUTE_F32, p.in = BF16;
      CHECK(multiply(p, stream) < 1e-6);
      p.out = p.bias = BF16;
      CHECK(multiply(p, stream) < 4e-3);
    }
}

void products_are_refused() {
  const int NOT_SUPPORTED = 15;
  Problem p{8, 8, 8, false, false};
  OK(Plan(p).status);
  p.in = BF16, p.out = BF16, p.bias = F32;
  CHECK(Plan(p).status == NOT_SUPPORTED);
  p.out = F32, p.bias = BF16;
  CHECK(Plan(p).status == NOT_SUPPORTED);
  p.bias = -1, p.c = BF16;
  CHECK(Plan(p).status == NOT_SUPPORTED);
  p.out = BF16, p.c = F32;
  CHECK(Plan(p).status == NOT_SUPPORTED);
  p.c = -1, p.in = F32;
  CHECK(Plan(p).status == NOT_SUPPORTED);
  // An algorithm is for the problem that it was found for.
  Plan one(Problem{8, 8, 8, false, false}), other(Problem{8, 8, 8, true, false});
  Buffer<float> x(64), y(64);
  float alpha = 1, beta = 0;
  CHECK(cublasLtMatmul(nullptr, one.description, &alpha, (void*)x.pointer, one.a, (void*)x.pointer, one.b, &beta,
                       (void*)y.pointer, one.c, (void*)y.pointer, one.out, other.found, nullptr, 0,
                       nullptr) == NOT_SUPPORTED);
}

/// Ends the process.
void products_share_a_workspace() {
  Buffer<char> workspace(256);
  Plan plan(Problem{8, 8, 8, false, false});
  Buffer<float> x(64), y(64), z(64);
  float alpha = 1, beta = 0;
  for (const Buffer<float>* out : {&y, &z})
    OK(cublasLtMatmul(nullptr, plan.description, &alpha, (void*)x.pointer, plan.a, (void*)x.pointer, plan.b, &beta,
                      (void*)out->pointer, plan.c, (void*)out->pointer, plan.out, plan.found, (void*)workspace.pointer,
                      256, new_stream()));
}

/// Ends the process.
void a_product_reads_too_far() {
  Plan plan(Problem{8, 8, 8, false, false});
  Buffer<float> x(63), y(64);
  float alpha = 1, beta = 0;
  cublasLtMatmul(nullptr, plan.description, &alpha, (void*)x.pointer, plan.a, (void*)y.pointer, plan.b, &beta,
                 (void*)y.pointer, plan.c, (void*)y.pointer, plan.out, plan.found, nullptr, 0, new_stream());
}

/// Processor time.
template <class F> double seconds(F f) {
  clock_t start = clock();
  f();
  return (double)(clock() - start) / CLOCKS_PER_SEC;
}

void speeds() {
  void* stream = new_stream();
  Buffer<float> out(1 << 22);
  for (auto [kernel, what] : {std::pair("count_switches", "barrier of 256 threads"), {"sum_by_shuffles", "shuffle"}}) {
    launch(stream, kernel, {1, 256}, out.pointer, 10);
    OK(cuStreamSynchronize(stream));
    uint64_t before = fake_num_switches();
    launch(stream, kernel, {16, 256}, out.pointer, 1000);
    double s = seconds([&] { OK(cuStreamSynchronize(stream)); });
    uint64_t n = fake_num_switches() - before;
    printf("%s: %.1f ns for a thread, %.1f ns a switch\n", what, s / (16 * 256 * 1000) * 1e9, s / (double)n * 1e9);
  }
  launch(stream, "add_one", {4096, 256}, out.pointer, out.pointer, 1 << 22);
  double s = seconds([&] { OK(cuStreamSynchronize(stream)); });
  printf("a thread without barriers: %.1f ns\n", s / (4096 * 256) * 1e9);
  for (int type : {F32, BF16}) {
    Problem p{512, 2048, 512, true, false, type, type};
    Plan plan(p);
    Values a(p.m * p.k, type, 1, stream), b(p.k * p.n, type, 2, stream), d(p.m * p.n, type, 3, stream);
    float alpha = 1, beta = 0;
    for (int i = 0; i < 4; i++)
      OK(cublasLtMatmul(nullptr, plan.description, &alpha, (void*)a.pointer, plan.a, (void*)b.pointer, plan.b, &beta,
                        (void*)d.pointer, plan.c, (void*)d.pointer, plan.out, plan.found, nullptr, 0, stream));
    double s = seconds([&] { OK(cuStreamSynchronize(stream)); });
    printf("products of %s: %.1f GFLOP/s\n", type == F32 ? "f32" : "bf16", 4 * 2.0 * 512 * 2048 * 512 / s / 1e9);
  }
}

}  // namespace
