#include "settings.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fake {
namespace {

int64_t number(const char* name, int64_t otherwise) {
  const char* text = getenv(name);
  if (!text || !*text) return otherwise;
  char* end;
  int64_t value = strtoll(text, &end, 10);
  if (*end) {
    fprintf(stderr, "emulated GPU: %s=%s is no number\n", name, text);
    abort();
  }
  return value;
}

Settings::Check check_of(const char* text) {
  if (!text || !*text || !strcmp(text, "abort") || !strcmp(text, "1")) return Settings::Check::abort;
  if (!strcmp(text, "count")) return Settings::Check::count;
  if (!strcmp(text, "0")) return Settings::Check::off;
  fprintf(stderr, "emulated GPU: FAKE_CHECK=%s is none of abort, count, 0\n", text);
  abort();
}

}  // namespace

Settings::Settings()
    : seed((uint64_t)number("FAKE_SEED", 1)),
      memory_bytes((uint64_t)number("FAKE_MEMORY", 80ll << 30)),
      calls_left(number("FAKE_LOST_AFTER", -1)),
      lost_code((int)number("FAKE_LOST_CODE", 719)),
      has_no_device(number("FAKE_NO_DEVICE", 0) != 0),
      check(check_of(getenv("FAKE_CHECK"))),
      major(9),
      minor(0),
      num_sms((int)number("FAKE_SMS", 132)),
      driver_version((int)number("FAKE_DRIVER", 13000)) {
  if (const char* text = getenv("FAKE_CAPABILITY")) {
    int a, b;
    if (sscanf(text, "%d.%d", &a, &b) == 2) major = a, minor = b;
  }
  if (const char* text = getenv("FAKE_SKIP")) skipped = text;
}

Settings& settings() {
  static Settings all;
  return all;
}

FAKE_EXPORT int fake_enter() {
  auto& left = settings().calls_left;
  int64_t now = left.load();
  while (now > 0 && !left.compare_exchange_weak(now, now - 1)) {}
  return now == 0 ? settings().lost_code.load() : 0;
}

FAKE_EXPORT bool fake_skips(const char* name) { return settings().skipped == name; }

FAKE_EXPORT void fake_memory(uint64_t bytes) { settings().memory_bytes = bytes; }
FAKE_EXPORT void fake_lose_after(int64_t num_calls) { settings().calls_left = num_calls; }
FAKE_EXPORT void fake_check(const char* how) { settings().check = check_of(how); }

}  // namespace fake
