// Types, conversions, short vectors, sums over a warp or a block. NVRTC compiles the text for the device, and g++ for
// tests, after a header that defines EMULATED and all that a compiler for GPUs knows by itself.

#ifndef EMULATED
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

// Shared memory whose size the launch gives.
#define DYNAMIC_SHARED(T, name)                            \
    extern __shared__ __align__(16) char name##_dynamic[]; \
    T* name = (T*)name##_dynamic
#endif

// Opens the definition of a kernel for blocks of up to THREADS threads.
#define KERNEL(THREADS) extern "C" __global__ void __launch_bounds__(THREADS)

typedef unsigned short bf16;

const int WARP = 32;
const uint32_t ALL_LANES = 0xffffffffu;

// ---- Numbers ----

template <class I> __device__ __forceinline__ I div_up(I a, I b) { return (a + b - 1) / b; }
template <class I> __device__ __forceinline__ I round_up(I a, I b) { return div_up(a, b) * b; }

__device__ __forceinline__ float bits_to_float(uint32_t bits) {
    union {
        uint32_t bits;
        float value;
    } both;
    both.bits = bits;
    return both.value;
}

__device__ __forceinline__ uint32_t float_to_bits(float value) {
    union {
        float value;
        uint32_t bits;
    } both;
    both.value = value;
    return both.bits;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return bits_to_float((uint32_t)x << 16); }

#ifdef EMULATED
// The nearest bf16, ties to even; NaN stays NaN.
__device__ __forceinline__ bf16 to_bf16(float x) {
    const uint32_t bits = float_to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bf16)0x7fff;
    return (bf16)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// Two bf16 in a word, the first in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    return (uint32_t)to_bf16(low) | (uint32_t)to_bf16(high) << 16;
}

// 1 / x within 1 ulp; a result below 2^-126 may be 0.
__device__ __forceinline__ float reciprocal_approx(float x) { return 1.0f / x; }

// The root of x within 1 ulp; that of a value below 2^-126 may be 0.
__device__ __forceinline__ float sqrt_approx(float x) { return sqrtf(x); }
#else
__device__ __forceinline__ bf16 to_bf16(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float sqrt_approx(float x) {
    float y;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 2^x within 2 ulp; a result below 2^-126 is 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

// x in the type of an activation.
template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return to_bf16(x); }

// ---- Short vectors: N values at once, in f32 wherever they are computed with ----

template <int N> struct Floats {
    float v[N];
};

template <class T, int N> struct alignas(sizeof(T) * N) Packed {
    T v[N];
};

// Loads N values in loads of at most 16 bytes, to which `from` is aligned.
template <int N> __device__ __forceinline__ Floats<N> load(const float* from) {
    const int STEP = N < 4 ? N : 4;
    Floats<N> x;
#pragma unroll
    for (int i = 0; i < N; i += STEP) {
        Packed<float, STEP> part = *(const Packed<float, STEP>*)(from + i);
#pragma unroll
        for (int j = 0; j < STEP; j++) x.v[i + j] = part.v[j];
    }
    return x;
}

template <int N> __device__ __forceinline__ Floats<N> load(const bf16* from) {
    Floats<N> x;
    if (N == 1) {
        x.v[0] = to_float(from[0]);
    } else {
        Packed<uint32_t, (N + 1) / 2> words = *(const Packed<uint32_t, (N + 1) / 2>*)from;
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            x.v[2 * i] = bits_to_float(words.v[i] << 16);
            x.v[2 * i + 1] = bits_to_float(words.v[i] & 0xffff0000u);
        }
    }
    return x;
}

// The same where `is_in`, else zeros. Unlike a branch around load and use, it lets several loads be under way at once.
template <int N, class T> __device__ __forceinline__ Floats<N> load_if(bool is_in, const T* from) {
    Floats<N> x = {};
    if (is_in) x = load<N>(from);
    return x;
}

// Stores N values in stores of at most 16 bytes, to which `to` is aligned.
template <int N> __device__ __forceinline__ void store(float* to, const Floats<N>& x) {
    const int STEP = N < 4 ? N : 4;
#pragma unroll
    for (int i = 0; i < N; i += STEP) {
        Packed<float, STEP> part;
#pragma unroll
        for (int j = 0; j < STEP; j++) part.v[j] = x.v[i + j];
        *(Packed<float, STEP>*)(to + i) = part;
    }
}

template <int N> __device__ __forceinline__ void store(bf16* to, const Floats<N>& x) {
    if (N == 1) {
        to[0] = to_bf16(x.v[0]);
    } else {
        Packed<uint32_t, (N + 1) / 2> words;
#pragma unroll
        for (int i = 0; i < N / 2; i++) words.v[i] = pack_bf16(x.v[2 * i], x.v[2 * i + 1]);
        *(Packed<uint32_t, (N + 1) / 2>*)to = words;
    }
}

// Whether N values from each place on may be loaded at once. Null is as good as any.
template <int N> __device__ __forceinline__ bool are_aligned() { return true; }
template <int N, class T, class... More> __device__ __forceinline__ bool are_aligned(const T* at, More... more) {
    const uint64_t size = N * sizeof(T) < 16 ? N * sizeof(T) : 16;
    return (uint64_t)at % size == 0 && are_aligned<N>(more...);
}

// The part of 0..len that is swept in runs of N values; the rest, or all if not `is_wide`, by single values.
template <int N> __device__ __forceinline__ int64_t len_of_runs(int64_t len, bool is_wide) {
    return is_wide ? len / N * N : 0;
}

// This thread's share of begin..end in runs of N values: `i` is where a run begins. A grid of any size does; one with a
// thread a run is best.
#define FOR_RUNS(N, i, begin, end)                                                                               \
    _Pragma("unroll 1") for (int64_t i = (begin) + (N) * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x);       \
                             i < (end); i += (N) * ((int64_t)gridDim.x * blockDim.x))

// f by element.
template <int N, class F, class... More>
__device__ __forceinline__ Floats<N> each(F f, const Floats<N>& x, const More&... more) {
    Floats<N> out;
#pragma unroll
    for (int i = 0; i < N; i++) out.v[i] = f(x.v[i], more.v[i]...);
    return out;
}

template <int N, class To, class F, class... From>
__device__ __forceinline__ void map_runs(int64_t begin, int64_t end, To* out, F f, const From*... from) {
    FOR_RUNS(N, i, begin, end) store(out + i, each<N>(f, load<N>(from + i)...));
}

// out[i] = f(from[i], ...) for all i of 0..len, in f32; out may be one of the vectors that are read.
template <class To, class F, class... From>
__device__ __forceinline__ void map(To* out, int64_t len, F f, const From*... from) {
    const int WIDE = sizeof(To) == 2 && ((sizeof(From) == 2) && ...) ? 8 : 4;
    const int64_t runs = len_of_runs<WIDE>(len, are_aligned<WIDE>(out, from...));
    map_runs<WIDE>(0, runs, out, f, from...);
    map_runs<1>(runs, len, out, f, from...);
}

// ---- Sums in a fixed order ----

template <class T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

__device__ __forceinline__ uint32_t warp_min(uint32_t x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        uint32_t other = __shfl_xor_sync(ALL_LANES, x, distance);
        x = other < x ? other : x;
    }
    return x;
}

// The sum over the block, for all of its threads, which must be whole warps.
template <class T> __device__ __forceinline__ T block_sum(T x) {
    __shared__ T of_warp[WARP];
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = x;
    __syncthreads();
    T sum = of_warp[0];
    for (int w = 1; w < (int)blockDim.x / WARP; w++) sum += of_warp[w];
    __syncthreads();
    return sum;
}
