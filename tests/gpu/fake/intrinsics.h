// The scalar functions of CUDA that no barrier needs: part of emulate.h.
#pragma once

inline float __uint_as_float(unsigned u) { return emulate::bits_of<float>(u); }
inline float __int_as_float(int u) { return emulate::bits_of<float>(u); }
inline unsigned __float_as_uint(float f) { return emulate::bits_of<unsigned>(f); }
inline int __float_as_int(float f) { return emulate::bits_of<int>(f); }
inline double __longlong_as_double(long long u) { return emulate::bits_of<double>(u); }
inline long long __double_as_longlong(double f) { return emulate::bits_of<long long>(f); }
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> void __stcs(T* p, T v) { *p = v; }
template <class T> void __stcg(T* p, T v) { *p = v; }

// CUDA's overloads: integers as in C, floats ignore a NaN.
template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin((T)a, (T)b);
  else return (T)a < (T)b ? (T)a : (T)b;
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax((T)a, (T)b);
  else return (T)a < (T)b ? (T)b : (T)a;
}
using std::abs;
using std::isfinite;
using std::isinf;
using std::isnan;

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return std::fmin(std::fmax(x, 0.0f), 1.0f); }
inline float normcdff(float x) { return 0.5f * erfcf(-0.70710678f * x); }
inline double normcdf(double x) { return 0.5 * erfc(-0.70710678118654752 * x); }
/// ex2.approx.ftz.
inline float exp2_approx(float x) {
  float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}

// Rounded by themselves: not contracted with their neighbours to a fused operation.
#define EMULATED_ROUNDED(name, T, op)                    \
  inline T __##name##_rn(T a, T b) {                     \
    volatile T r = a op b;                               \
    return r;                                            \
  }
EMULATED_ROUNDED(fadd, float, +)
EMULATED_ROUNDED(fsub, float, -)
EMULATED_ROUNDED(fmul, float, *)
EMULATED_ROUNDED(fdiv, float, /)
EMULATED_ROUNDED(dadd, double, +)
EMULATED_ROUNDED(dsub, double, -)
EMULATED_ROUNDED(dmul, double, *)
EMULATED_ROUNDED(ddiv, double, /)
#undef EMULATED_ROUNDED
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __double2float_rn(double a) { return (float)a; }
inline float __int2float_rn(int a) { return (float)a; }
inline float __uint2float_rn(unsigned a) { return (float)a; }
inline int __float2int_rn(float a) { return (int)rintf(a); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; i++) r |= (x >> i & 1u) << (31 - i);
  return r;
}
inline int __mul24(int a, int b) { return a * b; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }

// Atomics of integers: sums of floats would depend on their order, so they are left out.
template <class T, class U> T atomicAdd(T* p, U v) {
  static_assert(std::is_integral_v<T>, "float atomics make results depend on the order");
  return __atomic_fetch_add(p, (T)v, __ATOMIC_RELAXED);
}
template <class T, class U> T atomicOr(T* p, U v) { return __atomic_fetch_or(p, (T)v, __ATOMIC_RELAXED); }
template <class T, class U> T atomicAnd(T* p, U v) { return __atomic_fetch_and(p, (T)v, __ATOMIC_RELAXED); }
template <class T, class U> T atomicExch(T* p, U v) { return __atomic_exchange_n(p, (T)v, __ATOMIC_RELAXED); }
template <class T, class U, class V> T atomicCAS(T* p, U expected, V v) {
  T was = (T)expected;
  __atomic_compare_exchange_n(p, &was, (T)v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return was;
}
template <class T, class U> T atomicMin(T* p, U v) {
  static_assert(std::is_integral_v<T>);
  T was = __atomic_load_n(p, __ATOMIC_RELAXED);
  while ((T)v < was && !__atomic_compare_exchange_n(p, &was, (T)v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return was;
}
template <class T, class U> T atomicMax(T* p, U v) {
  static_assert(std::is_integral_v<T>);
  T was = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (was < (T)v && !__atomic_compare_exchange_n(p, &was, (T)v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return was;
}
