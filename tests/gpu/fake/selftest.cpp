// Tests of the emulated GPU at the interface of the driver, one case a process: `selftest CASE`. Cases that end well
// print ok; the others must end the process with a line that dataflow/device/src/testing/tests.rs expects.
#include <map>
#include <thread>

#include "selftest.h"

namespace {

// ---- What must work ----

void kernels_without_barriers_are_calls() {
  void* stream = new_stream();
  auto values = numbers(10000, 1);
  Buffer<float> in(values, stream), out(10000);
  launch(stream, "add_one", {7, 256}, out.pointer, in.pointer, 10000);
  auto got = out.read(stream);
  for (size_t i = 0; i < got.size(); i++) CHECK(got[i] == values[i] + 1.0f);
  CHECK(fake_num_switches() == 0);
}

std::vector<float> ring(const char* kernel, uint64_t seed) {
  fake_seed(seed);
  void* stream = new_stream();
  Buffer<float> in(numbers(2048, 2), stream), out(2048);
  launch(stream, kernel, {8, 256}, out.pointer, in.pointer);
  return out.read(stream);
}

void a_removed_barrier_is_seen() {
  auto values = numbers(2048, 2);
  for (uint64_t seed = 1; seed <= 20; seed++) {
    auto good = ring("ring_with_barrier", seed), bad = ring("ring_without", seed);
    for (size_t i = 0; i < 2048; i++) {
      size_t block = i / 256 * 256;
      CHECK(good[i] == values[block + (i + 1) % 256] + values[block + (i + 255) % 256]);
    }
    CHECK(bad != good);
  }
}

void warps_exchange() {
  for (uint64_t seed = 1; seed <= 5; seed++) {
    fake_seed(seed);
    void* stream = new_stream();
    Buffer<unsigned> out(8 * 96);
    launch(stream, "warp_operations", {1, 96}, out.pointer);
    auto got = out.read(stream);
    for (unsigned i = 0; i < 96; i++) {
      unsigned lane = i % 32, sum = 0;
      if (lane < 16) for (unsigned k = 0; k < 16; k++) sum += k;
      else for (unsigned k = 0; k < 8; k++) sum += lane / 8 * 8 + k;
      unsigned down = lane + 3 < 32 ? lane + 3 : lane, up = lane % 8 >= 3 ? lane - 3 : lane;
      unsigned any_and_all = (i / 32 == 1) * 2u + (i / 32 == 0);
      unsigned want[8] = {100 + (lane ^ 5), 100 + down, 100 + up, 7000, 0x49249249u, sum, any_and_all, 48};
      for (unsigned k = 0; k < 8; k++) CHECK(got[8 * i + k] == want[k]);
    }
  }
}

std::vector<float> multiply(const char* kernel, std::vector<float>* want) {
  void* stream = new_stream();
  auto a = numbers(256, 3), b = numbers(128, 4);
  std::vector<uint16_t> low_a, low_b;
  for (float x : a) low_a.push_back(to_bf16(x));
  for (float x : b) low_b.push_back(to_bf16(x));
  for (size_t i = 0; i < 128; i++) {
    double sum = 0;
    for (size_t k = 0; k < 16; k++) sum += from_bf16(low_a[i / 8 * 16 + k]) * (double)from_bf16(low_b[k * 8 + i % 8]);
    want->push_back((float)sum);
  }
  Buffer<uint16_t> in_a(low_a, stream), in_b(low_b, stream);
  Buffer<float> out(128);
  launch(stream, kernel, {1, 32, 768}, out.pointer, in_a.pointer, in_b.pointer);
  return out.read(stream);
}

void tensor_cores_multiply() {
  std::vector<float> want, unused;
  auto got = multiply("multiply_matrices", &want), unwaited = multiply("multiply_without_wait", &unused);
  for (size_t i = 0; i < 128; i++) CHECK(std::abs(got[i] - want[i]) < 1e-5);
  for (size_t i = 0; i < 128; i++) CHECK(std::isnan(unwaited[i]));
}

/// A chain over three streams; bits of the end.
std::vector<float> chain(uint64_t seed, bool waits) {
  fake_seed(seed);
  void *streams[3] = {new_stream(), new_stream(), new_stream()};
  Buffer<float> a(numbers(512, 5), streams[0]), b(512);
  const int n = 512;
  for (int i = 0; i < 12; i++) {
    void *stream = streams[i % 3], *event = new_event();
    const Buffer<float>&from = i % 2 ? b : a, &to = i % 2 ? a : b;
    launch(stream, "add_one", {2, 256}, to.pointer, from.pointer, n);
    OK(cuEventRecord(event, stream));
    if (waits || i != 7) OK(cuStreamWaitEvent(streams[(i + 1) % 3], event, 0));
  }
  return a.read(streams[2]);
}

void streams_run_in_any_order() {
  auto first = chain(1, true);
  for (uint64_t seed = 2; seed <= 50; seed++) CHECK(chain(seed, true) == first);
  CHECK(fake_missing_waits() == 0);
}

/// With FAKE_CHECK=count.
void missing_waits_are_counted() {
  unsigned num_different = 0;
  auto first = chain(1, true);
  for (uint64_t seed = 1; seed <= 50; seed++) {
    unsigned before = fake_missing_waits();
    num_different += chain(seed, false) != first;
    CHECK(fake_missing_waits() > before);
  }
  printf("%u of 50 orders differ; %s\n", num_different, fake_missing_wait());
}

void graphs_run_again() {
  void *stream = new_stream(), *graph, *executable;
  Buffer<float> x(std::vector<float>(100, 0.0f), stream);
  OK(cuStreamBeginCapture_v2(stream, 1));
  for (int i = 0; i < 3; i++) launch(stream, "add_one", {1, 128}, x.pointer, x.pointer, 100);
  CHECK(cuStreamSynchronize(stream) == 900);
  OK(cuStreamEndCapture(stream, &graph));
  OK(cuGraphInstantiateWithFlags(&executable, graph, 0));
  for (int i = 0; i < 4; i++) OK(cuGraphLaunch(executable, stream));
  for (float v : x.read(stream)) CHECK(v == 12.0f);
}

void threads_of_the_host_work_at_once() {
  auto values = numbers(2048, 2);
  auto work = [&] {
    void* stream = new_stream();
    for (int i = 0; i < 30; i++) {
      Buffer<float> in(values, stream), out(2048);
      launch(stream, "ring_with_barrier", {8, 256}, out.pointer, in.pointer);
      launch(stream, "add_one", {3, 64}, out.pointer, out.pointer, 2048);
      auto got = out.read(stream);
      for (size_t k = 0; k < 2048; k++) {
        size_t block = k / 256 * 256;
        CHECK(got[k] == values[block + (k + 1) % 256] + values[block + (k + 255) % 256] + 1);
      }
      OK(cuMemFree_v2(in.pointer));
    }
    OK(cuStreamDestroy_v2(stream));
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; i++) threads.emplace_back(work);
  for (auto& thread : threads) thread.join();
}

void pinned_copies_take_their_time() {
  void* stream = new_stream();
  float* host;
  OK(cuMemHostAlloc((void**)&host, 4, 0));
  Buffer<float> x(std::vector<float>{1.0f}, stream);
  *host = 7;
  OK(cuMemcpyDtoHAsync_v2(host, x.pointer, 4, stream));
  CHECK(*host == 7);
  OK(cuStreamSynchronize(stream));
  CHECK(*host == 1);
  OK(cuMemcpyHtoDAsync_v2(x.pointer, host, 4, stream));
  *host = 9;
  CHECK(x.read(stream)[0] == 9);
}

void limits_of_launches() {
  void *stream = new_stream(), *function;
  Buffer<float> x(1);
  CHECK(try_launch(stream, "ring_with_barrier", {1, 512}, x.pointer, x.pointer) == 701);
  CHECK(try_launch(stream, "add_one", {0, 32}, x.pointer, x.pointer, 1) == 1);
  CHECK(try_launch(stream, "add_one", {1, 1056}, x.pointer, x.pointer, 1) == 1);
  CHECK(try_launch(stream, "write_shared_at", {1, 1, 50000}, x.pointer, 0) == 1);
  OK(cuModuleGetFunction(&function, module_of_kernels(), "write_shared_at"));
  CHECK(cuFuncSetAttribute(function, 8, 300000) == 1);
  OK(cuFuncSetAttribute(function, 8, 50000));
  launch(stream, "write_shared_at", {1, 1, 50000}, x.pointer, 12499);
  CHECK(x.read(stream)[0] == 1);
  CHECK(cuModuleGetFunction(&function, module_of_kernels(), "unknown") == 500);
  CHECK(std::string(fake_kernel_signature("read_at")) == "wrl");
}

void images_name_their_kernels() {
  OK(cuInit(0));
  void *program, *module;
  char image[64] = "something else";
  CHECK(cuModuleLoadData(&module, image) == 200);
  OK(nvrtcCreateProgram(&program, "other kernels", "a.cu", 0, nullptr, nullptr));
  OK(nvrtcCompileProgram(program, 0, nullptr));
  OK(nvrtcGetCUBIN(program, image));
  CHECK(cuModuleLoadData(&module, image) == 200);
}

// ---- Faults that the device has on request ----

/// With FAKE_MEMORY=10000.
void memory_ends() {
  OK(cuInit(0));
  uint64_t a, b;
  OK(cuMemAlloc_v2(&a, 6000));
  CHECK(cuMemAlloc_v2(&b, 6000) == 2);
  OK(cuMemFree_v2(a));
  OK(cuMemAlloc_v2(&b, 10000));
}

/// With FAKE_LOST_AFTER=12.
void the_device_is_lost() {
  OK(cuInit(0));
  uint64_t p;
  for (int i = 0; i < 6; i++) {
    OK(cuMemAlloc_v2(&p, 16));
    OK(cuMemFree_v2(p));
  }
  const char* name;
  for (int i = 0; i < 3; i++) CHECK(cuMemAlloc_v2(&p, 16) == 719);
  OK(cuGetErrorName(719, &name));
  CHECK(std::string(name) == "CUDA_ERROR_LAUNCH_FAILED");
}

/// With FAKE_NO_DEVICE=1.
void there_is_no_device() {
  int count = -1;
  CHECK(cuInit(0) == 100);
  OK(cuDeviceGetCount(&count));
  CHECK(count == 0);
}

// ---- Bugs that must be told: the process ends ----

template <class... A> void run(const char* kernel, Shape shape, A... args) {
  void* stream = new_stream();
  launch(stream, kernel, shape, args...);
  OK(cuStreamSynchronize(stream));
  printf("%s was not told\n", kernel);
}

void writes_past_the_end() { run("write_at", {1, 1}, Buffer<float>(1000).pointer, 1000ll); }
void writes_just_past_the_end() { run("write_at", {1, 1}, Buffer<float>(1001).pointer, 1001ll); }
void reads_past_the_end() { run("read_at", {1, 1}, Buffer<float>(1).pointer, Buffer<float>(64).pointer, 64ll); }
void reads_freed_memory() {
  Buffer<float> out(1), in(64), page(1 << 20);
  OK(cuMemFree_v2(page.pointer));
  run("read_at", {1, 1}, out.pointer, in.pointer, (long long)(page.pointer - in.pointer) / 4);
}
void gets_a_freed_pointer() {
  Buffer<float> x(64);
  OK(cuMemFree_v2(x.pointer));
  run("write_at", {1, 1}, x.pointer, 0ll);
}
void gets_a_pointer_of_the_host() {
  float x;
  run("write_at", {1, 1}, (uint64_t)&x, 0ll);
}
void writes_past_shared_memory() { run("write_shared_at", {1, 1, 64}, Buffer<float>(1).pointer, 16); }
void reads_a_misaligned_vector() { run("read_vector", {1, 1}, Buffer<float>(4).pointer, Buffer<float>(8).pointer, 1); }
void waits_for_nobody() { run("stuck", {1, 64}, Buffer<float>(64).pointer); }
void shuffles_with_absent_lanes() { run("shuffle_with_absent", {1, 32}, Buffer<float>(32).pointer); }
void diverges() { run("diverged", {1, 32}, Buffer<unsigned>(32).pointer); }
void forgets_a_wait() { chain(1, false); }
void host_reads_device_memory() {
  OK(cuInit(0));
  Buffer<float> x(64);
  printf("%f\n", ((float*)x.pointer)[64]);
}

}  // namespace

#include "selftest_products.h"

#define CASE(name) {#name, name}
int main(int num_arguments, char** arguments) {
  const std::map<std::string, void (*)()> cases = {
      CASE(kernels_without_barriers_are_calls), CASE(a_removed_barrier_is_seen), CASE(warps_exchange),
      CASE(tensor_cores_multiply), CASE(streams_run_in_any_order), CASE(missing_waits_are_counted),
      CASE(graphs_run_again), CASE(pinned_copies_take_their_time), CASE(limits_of_launches),
      CASE(threads_of_the_host_work_at_once),
      CASE(images_name_their_kernels), CASE(memory_ends), CASE(the_device_is_lost), CASE(there_is_no_device),
      CASE(writes_past_the_end), CASE(writes_just_past_the_end), CASE(reads_past_the_end), CASE(reads_freed_memory),
      CASE(gets_a_freed_pointer), CASE(gets_a_pointer_of_the_host), CASE(writes_past_shared_memory),
      CASE(reads_a_misaligned_vector), CASE(waits_for_nobody), CASE(shuffles_with_absent_lanes), CASE(diverges),
      CASE(forgets_a_wait), CASE(host_reads_device_memory), CASE(products_are_right), CASE(products_are_refused),
      CASE(products_share_a_workspace), CASE(a_product_reads_too_far), CASE(speeds),
  };
  auto found = cases.find(num_arguments > 1 ? arguments[1] : "");
  if (found == cases.end()) {
    fprintf(stderr, "usage: selftest CASE\n");
    return 2;
  }
  found->second();
  puts("ok");
}
