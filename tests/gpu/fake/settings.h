// What tests can ask of the emulated GPU, by environment variables or by the exported functions of settings.cpp.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

namespace fake {

struct Settings {
  /// FAKE_SEED: of all random orders.
  std::atomic<uint64_t> seed;
  /// FAKE_MEMORY: bytes of the device.
  std::atomic<uint64_t> memory_bytes;
  /// FAKE_LOST_AFTER: calls of the driver until the device is lost; negative: never.
  std::atomic<int64_t> calls_left;
  /// FAKE_LOST_CODE: what each call returns then.
  std::atomic<int> lost_code;
  /// FAKE_NO_DEVICE=1: a driver without a GPU.
  std::atomic<bool> has_no_device;
  /// FAKE_CHECK: `abort` (or 1, and by default) ends the process at the first missing wait, `count` only counts, 0 is
  /// off.
  enum class Check { off, count, abort };
  std::atomic<Check> check;
  /// FAKE_CAPABILITY, like 8.6, and FAKE_SMS.
  std::atomic<int> major, minor, num_sms;
  /// FAKE_DRIVER: the version of CUDA that the driver speaks, as 12040 for 12.4.
  std::atomic<int> driver_version;

  /// FAKE_SKIP: the name of a kernel, or `product`, that leaves its results as they are.
  std::string skipped;

  Settings();
};

Settings& settings();

/// Begins a call of the driver: 0, or the error of a lost device.
extern "C" int fake_enter();

/// Whether FAKE_SKIP names it.
extern "C" bool fake_skips(const char* name);

}  // namespace fake

#define FAKE_EXPORT extern "C" __attribute__((visibility("default")))
#define FAKE_ENTER() \
  if (int lost = fake::fake_enter()) return lost
