// CUDA C++ for g++: included before the text of dataflow/device/kernels, so that the kernels of the GPU run on a CPU.
//
// A block runs on one thread of the operating system, its threads as fibers (block.h). What a kernel needs beyond the
// language (mma, ldmatrix, cp.async) has a name here and, for NVRTC, under `#ifndef EMULATED` in the kernels.
#pragma once
#define EMULATED 1

#ifdef EMULATED_SCAN
// Only preprocessed, for the list of kernels (dataflow/device/src/testing): markers in place of qualifiers.
#define __global__ EMULATED_KERNEL
#define __launch_bounds__(...) EMULATED_BOUNDS(__VA_ARGS__)
#else

#include <cmath>
#include <cstdio>

#include "runtime.h"

#define __global__ __attribute__((visibility("hidden")))
#define __device__ inline
#define __host__
#define __forceinline__
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static
// One copy for a thread of the system, as it runs one block at a time; NaN when a block begins.
#define __shared__ static thread_local
// `extern __shared__` for both compilers. The end of the bytes that the launch asked for is a guard page.
#define DYNAMIC_SHARED(T, name) T* name = (T*)emulate::running->shared

#define EMULATED_VECTOR(T, name, bytes)                                                       \
  struct alignas(bytes / 2) name##2 { T x, y; };                                              \
  struct alignas(bytes) name##4 { T x, y, z, w; };                                            \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                  \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTOR(unsigned char, uchar, 4)
EMULATED_VECTOR(short, short, 8)
EMULATED_VECTOR(unsigned short, ushort, 8)
EMULATED_VECTOR(int, int, 16)
EMULATED_VECTOR(unsigned, uint, 16)
EMULATED_VECTOR(float, float, 16)
#undef EMULATED_VECTOR
struct alignas(16) double2 { double x, y; };
inline double2 make_double2(double x, double y) { return {x, y}; }
struct alignas(16) longlong2 { long long x, y; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };

#define threadIdx (emulate::running->thread)
#define blockIdx (emulate::running->block_index)
#define blockDim (emulate::running->block)
#define gridDim (emulate::running->grid)
#define warpSize 32

inline void __syncthreads() { emulate::block_barrier(); }
inline int __syncthreads_or(int p) { return emulate::block_vote(p, 0); }
inline int __syncthreads_and(int p) { return emulate::block_vote(p, 1); }
inline int __syncthreads_count(int p) { return emulate::block_vote(p, 2); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulate::warp_barrier(mask); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { emulate::trap("__trap"); }

// Shuffles; `width` splits a warp into groups of a power of two.
template <class T> T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
  unsigned lane = emulate::lane(), base = lane & ~(unsigned)(width - 1);
  return emulate::shuffled(mask, v, base + ((unsigned)from & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
  unsigned lane = emulate::lane(), from = lane ^ (unsigned)bits, base = lane & ~(unsigned)(width - 1);
  return emulate::shuffled(mask, v, from < base + width ? from : lane);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
  unsigned lane = emulate::lane(), base = lane & ~(unsigned)(width - 1);
  return emulate::shuffled(mask, v, lane + by < base + width ? lane + by : lane);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
  unsigned lane = emulate::lane(), base = lane & ~(unsigned)(width - 1);
  return emulate::shuffled(mask, v, lane >= base + by ? lane - by : lane);
}
inline unsigned __ballot_sync(unsigned mask, int p) { return emulate::ballot(mask, p != 0); }
inline int __any_sync(unsigned mask, int p) { return emulate::ballot(mask, p != 0) != 0; }
inline int __all_sync(unsigned mask, int p) { return emulate::ballot(mask, p == 0) == 0; }

// Tensor cores, and copies that are not seen in shared memory before they are waited for: what kernels/mma.cuh gives
// NVRTC as instructions. bf16 are unsigned short.
/// mma.sync.m16n8k16 of bf16: d += a b with f32 sums.
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const unsigned b[2] = {b0, b1};
  emulate::mma_bf16(d, a, b);
}
/// ldmatrix.x4 and .x4.trans: lane 8 i + j gives the address of row j of matrix i.
inline void load_matrices(unsigned (&r)[4], const unsigned short* row) { emulate::load_matrices(r, row, false); }
inline void load_matrices_transposed(unsigned (&r)[4], const unsigned short* row) {
  emulate::load_matrices(r, row, true);
}
/// cp.async of 16 aligned bytes; zeros if not present.
inline void copy16_async(void* to, const void* from, bool present) { emulate::copy_async(to, from, present); }
/// cp.async.wait_all.
inline void wait_for_copies() { emulate::wait_for_copies(); }

#include "intrinsics.h"
#endif
