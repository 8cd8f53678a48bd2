// Kernels for selftest.cpp: what the emulation must do, and faults that it must find.

extern "C" __global__ void add_one(float* out, const float* in, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) out[i] = in[i] + 1.0f;
}

// Sums of neighbours in a ring of 256 threads, through shared memory; wrong without the barrier.
template <bool has_barrier> __device__ __forceinline__ void ring(float* out, const float* in) {
  __shared__ float shared[256];
  const int i = threadIdx.x;
  shared[i] = in[256 * blockIdx.x + i];
  if (has_barrier) __syncthreads();
  out[256 * blockIdx.x + i] = shared[(i + 1) % 256] + shared[(i + 255) % 256];
}
extern "C" __global__ void __launch_bounds__(256) ring_with_barrier(float* out, const float* in) {
  ring<true>(out, in);
}
extern "C" __global__ void __launch_bounds__(256) ring_without(float* out, const float* in) {
  ring<false>(out, in);
}

// out[8 i + …] = what lane i gets from each operation of a warp.
extern "C" __global__ void warp_operations(unsigned* out) {
  const unsigned i = threadIdx.x, lane = i % 32;
  unsigned* to = out + 8 * i;
  to[0] = __shfl_xor_sync(0xffffffffu, 100 + lane, 5);
  to[1] = __shfl_down_sync(0xffffffffu, 100 + lane, 3);
  to[2] = __shfl_up_sync(0xffffffffu, 100 + lane, 3, 8);
  to[3] = (unsigned)__shfl_sync(0xffffffffu, 1e3 * lane, 7);
  to[4] = __ballot_sync(0xffffffffu, lane % 3 == 0);
  // Two halves of a warp by themselves, one twice as often as the other.
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  unsigned sum = lane;
  for (int k = lane < 16 ? 8 : 4; k > 0; k /= 2) sum += __shfl_xor_sync(half, sum, k);
  to[5] = sum;
  to[6] = (unsigned)__any_sync(0xffffffffu, i == 40) * 2 + (unsigned)__all_sync(0xffffffffu, i < 40);
  to[7] = (unsigned)__syncthreads_count(i % 2);
}

// d [16, 8] = a [16, 16] b [16, 8] of bf16, by way of cp.async, ldmatrix and mma.
template <bool waits>
__device__ __forceinline__ void multiply(float* d, const unsigned short* a, const unsigned short* b) {
  DYNAMIC_SHARED(unsigned short, shared);
  const unsigned lane = threadIdx.x;
  unsigned short* shared_b = shared + 256;
  copy16_async(shared + 8 * lane, a + 8 * lane, true);
  copy16_async(shared_b + 8 * (lane % 16), b + 8 * (lane % 16), true);
  if (waits) wait_for_copies();
  __syncwarp();
  unsigned of_a[4], of_b[4];
  // Matrices of A in the order of its words: rows 0 and 8 of columns 0, then of columns 8.
  load_matrices(of_a, shared + (lane % 16) * 16 + lane / 16 * 8);
  load_matrices_transposed(of_b, shared_b + (lane % 16) * 8);
  float sums[4] = {};
  mma_bf16(sums, of_a, of_b[0], of_b[1]);
  for (int i = 0; i < 4; i++) d[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = sums[i];
}
extern "C" __global__ void multiply_matrices(float* d, const unsigned short* a, const unsigned short* b) {
  multiply<true>(d, a, b);
}
extern "C" __global__ void multiply_without_wait(float* d, const unsigned short* a, const unsigned short* b) {
  multiply<false>(d, a, b);
}

extern "C" __global__ void write_at(float* out, long long i) { out[i] = 1.0f; }
extern "C" __global__ void read_at(float* out, const float* in, long long i) { out[0] = in[i]; }
extern "C" __global__ void write_shared_at(float* out, int i) {
  DYNAMIC_SHARED(float, shared);
  shared[i] = 1.0f;
  out[0] = shared[i];
}
extern "C" __global__ void read_vector(float4* out, const float* in, int i) { out[0] = *(const float4*)(in + i); }

// Lane 0 waits for its warp, all others for the block.
extern "C" __global__ void stuck(float* out) {
  if (threadIdx.x == 0) __syncwarp();
  else __syncthreads();
  out[threadIdx.x] = 0;
}
extern "C" __global__ void shuffle_with_absent(float* out) {
  if (threadIdx.x >= 20) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 16);
}
extern "C" __global__ void diverged(unsigned* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1u, 1);
  else out[threadIdx.x] = __ballot_sync(0xffffffffu, 1);
}
extern "C" __global__ void count_switches(float* out, int n) {
  float x = threadIdx.x;
  for (int i = 0; i < n; i++) __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = x;
}
extern "C" __global__ void sum_by_shuffles(float* out, int n) {
  float x = threadIdx.x;
  for (int i = 0; i < n; i++) x = 0.5f * (x + __shfl_xor_sync(0xffffffffu, x, i % 32));
  out[blockIdx.x * blockDim.x + threadIdx.x] = x;
}
