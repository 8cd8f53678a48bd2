// Streams, events and graphs. A stream is a queue; nothing runs before some call waits, and then streams go on in a
// random order that events allow. Several threads that wait run the work of different streams at the same time.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "order.h"

namespace fake {

/// That an event was recorded, and when it happened.
struct Record {
  bool is_done = false;
  double ms = 0;
  Clock clock;
};

struct Work {
  std::string name;
  std::vector<Access> accesses;
  /// Gets a random number for orders of its own; not 0.
  std::function<void(uint64_t seed)> run;
  std::shared_ptr<Record> waits_for, records;
};

/// Modes of a capture, as CUstreamCaptureMode has them; the third, relaxed, forbids nothing.
enum { CAPTURE_GLOBAL = 0, CAPTURE_THREAD_LOCAL = 1 };

struct Stream {
  unsigned number = 0;
  std::deque<Work> queue;
  bool is_running = false;
  uint64_t num_enqueued = 0, num_done = 0;
  Clock clock;
  std::unique_ptr<std::vector<Work>> capture;
  int capture_mode = CAPTURE_GLOBAL;
  std::thread::id capture_thread;
};

struct Event {
  std::shared_ptr<Record> last;  // none before the first record
};

// Errors of the driver are returned as numbers.
constexpr int NOT_READY = 600, CAPTURE_UNSUPPORTED = 900, UNKNOWN = 999, INVALID_VALUE = 1, INVALID_HANDLE = 400;

/// Stream 0 of the driver is a stream of its own here.
Stream* stream_of(void* handle);
Stream* new_stream();
int delete_stream(Stream* stream);

int enqueue(Stream* stream, Work work);
/// Waits for what is enqueued by now.
int wait_for(Stream* stream);
int wait_for_all();
bool is_idle(Stream* stream);

int record(Event* event, Stream* stream);
int wait_event(Stream* stream, Event* event);
int wait_for(Event* event);
int query(Event* event);
int elapsed_ms(float* ms, Event* from, Event* to);

int begin_capture(Stream* stream, int mode);
int end_capture(Stream* stream, std::vector<Work>* graph);
int launch_graph(Stream* stream, const std::vector<Work>& graph);
/// Whether a capture forbids this thread calls that wait for the device.
bool is_capturing();

}  // namespace fake
