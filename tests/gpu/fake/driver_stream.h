// What the emulated libcublasLt calls of the emulated libcuda.
#pragma once
#include <cstdint>

extern "C" {
/// 0, or the error of a lost device.
int fake_enter();
/// Whether FAKE_SKIP names it.
bool fake_skips(const char* name);
/// Enqueues `run(data)`, perhaps several times by a graph; `drop(data)` follows the last. `reads` and `writes` are
/// pointers to the memory it touches and end with 0.
int fake_enqueue(void* stream, const char* name, const uint64_t* reads, const uint64_t* writes, void (*run)(void*),
                 void* data, void (*drop)(void*));
/// Whether the bytes lie in one allocation of the device.
int fake_is_device_range(uint64_t pointer, uint64_t bytes);
}
