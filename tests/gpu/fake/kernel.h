// What is known of a kernel from its C++ type. The table `kernels` is written by dataflow/device/src/testing.
#pragma once
#include <type_traits>
#include <utility>

namespace emulate {

struct Kernel {
  const char* name;
  /// Calls it with pointers to the values of its parameters.
  void (*call)(void** args);
  /// A letter for each parameter: r, w pointer to read or to write, i, u, l, U integers of 32 and 64 bits, f, d floats.
  const char* signature;
  /// Threads of a block at most, by __launch_bounds__.
  unsigned max_threads;
};

/// Ends with a null name.
extern const Kernel kernels[];

template <class T> constexpr char letter() {
  if constexpr (std::is_pointer_v<T>) return std::is_const_v<std::remove_pointer_t<T>> ? 'r' : 'w';
  else if constexpr (std::is_same_v<T, float>) return 'f';
  else if constexpr (std::is_same_v<T, double>) return 'd';
  else if constexpr (std::is_integral_v<T> && sizeof(T) == 4) return std::is_signed_v<T> ? 'i' : 'u';
  else if constexpr (std::is_integral_v<T> && sizeof(T) == 8) return std::is_signed_v<T> ? 'l' : 'U';
  else static_assert(!sizeof(T), "a parameter of a kernel is a pointer, an integer of 32 or 64 bits, or a float");
}

template <auto function, class F = decltype(function)> struct Of;
template <auto function, class... P> struct Of<function, void (*)(P...)> {
  template <size_t... I> static void spread(void** args, std::index_sequence<I...>) { function(*(P*)args[I]...); }
  static void call(void** args) { spread(args, std::index_sequence_for<P...>{}); }
  static constexpr char signature[] = {letter<P>()..., 0};
};

/// The threads that `__launch_bounds__(max_threads, …)` allows.
constexpr unsigned bound(unsigned max_threads, ...) { return max_threads; }

template <auto function> constexpr Kernel kernel(const char* name, unsigned max_threads) {
  return {name, Of<function>::call, Of<function>::signature, max_threads};
}

}  // namespace emulate
