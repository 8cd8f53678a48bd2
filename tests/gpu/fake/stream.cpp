#include "stream.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <map>
#include <mutex>
#include <thread>

#include "block.h"
#include "settings.h"

namespace fake {
namespace {

struct Scheduler {
  std::mutex lock;
  std::condition_variable changed;
  std::vector<Stream*> streams;
  unsigned num_streams = 0;
  /// Captures in global mode, which forbid calls that are unsafe in a capture to every thread.
  unsigned num_captures = 0;
  /// Captures that forbid them to the thread that began them. No thread-local variable: those are the shared memory of
  /// kernels (shared.h).
  std::map<std::thread::id, unsigned> num_captures_of;
  emulate::Random random{settings().seed};
};

Scheduler& scheduler() {
  static Scheduler* all = new Scheduler;  // used by threads until the process ends
  return *all;
}

using Lock = std::unique_lock<std::mutex>;

double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Runs the first work of a stream that can go on; the lock is given up meanwhile. False if none can.
bool step(Scheduler& s, Lock& lock) {
  std::vector<Stream*> ready;
  for (Stream* stream : s.streams) {
    if (stream->is_running || stream->queue.empty()) continue;
    const auto& waits_for = stream->queue.front().waits_for;
    if (!waits_for || waits_for->is_done) ready.push_back(stream);
  }
  if (ready.empty()) return false;
  Stream* stream = ready[s.random.below((unsigned)ready.size())];
  Work work = std::move(stream->queue.front());
  stream->queue.pop_front();
  if (work.run) {
    stream->is_running = true;
    uint64_t seed = s.random.next() | 1;
    lock.unlock();
    work.run(seed);
    lock.lock();
    stream->is_running = false;
  }
  if (work.records) {
    work.records->is_done = true;
    work.records->ms = now_ms();
  }
  stream->num_done++;
  s.changed.notify_all();
  return true;
}

/// Runs work, or waits for other threads that do, until `is_done`.
template <class F> int run_until(Scheduler& s, Lock& lock, F is_done) {
  while (!is_done()) {
    if (step(s, lock)) continue;
    bool is_any_running = std::any_of(s.streams.begin(), s.streams.end(), [](Stream* t) { return t->is_running; });
    if (!is_any_running) {
      fprintf(stderr, "emulated GPU: every stream waits for an event that nothing records\n");
      return UNKNOWN;
    }
    s.changed.wait(lock);
  }
  return 0;
}

void advance(Stream* stream) {
  if (stream->clock.size() <= stream->number) stream->clock.resize(stream->number + 1);
  stream->clock[stream->number]++;
}

void put(Stream* stream, Work work) {
  advance(stream);
  check_order(stream->number, stream->clock, work.name, work.accesses);
  stream->queue.push_back(std::move(work));
  stream->num_enqueued++;
}

Stream* add_stream(Scheduler& s) {
  auto* stream = new Stream;
  stream->number = s.num_streams++;
  s.streams.push_back(stream);
  return stream;
}

}  // namespace

Stream* stream_of(void* handle) {
  if (handle) return (Stream*)handle;
  Scheduler& s = scheduler();
  Lock lock(s.lock);
  static Stream* null_stream = add_stream(s);
  return null_stream;
}

Stream* new_stream() {
  Scheduler& s = scheduler();
  Lock lock(s.lock);
  return add_stream(s);
}

int delete_stream(Stream* stream) {
  if (int error = wait_for(stream)) return error;
  Scheduler& s = scheduler();
  Lock lock(s.lock);
  s.streams.erase(std::find(s.streams.begin(), s.streams.end(), stream));
  delete stream;
  return 0;
}

int enqueue(Stream* stream, Work work) {
  Lock lock(scheduler().lock);
  if (stream->capture) stream->capture->push_back(std::move(work));
  else put(stream, std::move(work));
  return 0;
}

int wait_for(Stream* stream) {
  Scheduler& s = scheduler();
  Lock lock(s.lock);
  if (stream->capture) return CAPTURE_UNSUPPORTED;
  uint64_t until = stream->num_enqueued;
  Clock clock = stream->clock;
  int error = run_until(s, lock, [&] { return stream->num_done >= until; });
  if (!error) host_has_seen(clock);
  return error;
}

int wait_for_all() {
  Scheduler& s = scheduler();
  Lock lock(s.lock);
  if (s.num_captures) return CAPTURE_UNSUPPORTED;
  std::map<unsigned, uint64_t> targets;  // by number of the stream
  Clock clock;
  for (Stream* stream : s.streams) {
    targets[stream->number] = stream->num_enqueued;
    merge(clock, stream->clock);
  }
  // A stream that is deleted meanwhile has been waited for.
  int error = run_until(s, lock, [&] {
    return std::all_of(s.streams.begin(), s.streams.end(), [&](Stream* stream) {
      auto target = targets.find(stream->number);
      return target == targets.end() || stream->num_done >= target->second;
    });
  });
  if (!error) host_has_seen(clock);
  return error;
}

bool is_idle(Stream* stream) {
  Scheduler& s = scheduler();
  Lock lock(s.lock);
  step(s, lock);  // so that a host that asks again and again gets somewhere
  return stream->num_done == stream->num_enqueued;
}

int record(Event* event, Stream* stream) {
  Lock lock(scheduler().lock);
  if (stream->capture) return 0;  // a graph of one stream is in order anyway
  auto happened = std::make_shared<Record>();
  Work work;
  work.name = "an event";
  work.records = happened;
  put(stream, std::move(work));
  happened->clock = stream->clock;
  event->last = happened;
  return 0;
}

int wait_event(Stream* stream, Event* event) {
  Lock lock(scheduler().lock);
  if (stream->capture || !event->last) return 0;
  Work work;
  work.name = "a wait";
  work.waits_for = event->last;
  put(stream, std::move(work));
  merge(stream->clock, event->last->clock);
  return 0;
}

int wait_for(Event* event) {
  Scheduler& s = scheduler();
  Lock lock(s.lock);
  auto last = event->last;
  if (!last) return 0;
  int error = run_until(s, lock, [&] { return last->is_done; });
  if (!error) host_has_seen(last->clock);
  return error;
}

int query(Event* event) {
  Scheduler& s = scheduler();
  Lock lock(s.lock);
  step(s, lock);
  if (!event->last) return 0;
  if (!event->last->is_done) return NOT_READY;
  host_has_seen(event->last->clock);
  return 0;
}

int elapsed_ms(float* ms, Event* from, Event* to) {
  Lock lock(scheduler().lock);
  if (!from->last || !to->last) return INVALID_HANDLE;
  if (!from->last->is_done || !to->last->is_done) return NOT_READY;
  *ms = (float)(to->last->ms - from->last->ms);
  return 0;
}

int begin_capture(Stream* stream, int mode) {
  Scheduler& s = scheduler();
  Lock lock(s.lock);
  if (stream->capture) return INVALID_VALUE;
  stream->capture = std::make_unique<std::vector<Work>>();
  stream->capture_mode = mode;
  if (mode == CAPTURE_GLOBAL) s.num_captures++;
  stream->capture_thread = std::this_thread::get_id();
  if (mode == CAPTURE_THREAD_LOCAL) s.num_captures_of[stream->capture_thread]++;
  return 0;
}

int end_capture(Stream* stream, std::vector<Work>* graph) {
  Scheduler& s = scheduler();
  Lock lock(s.lock);
  if (!stream->capture) return INVALID_VALUE;
  *graph = std::move(*stream->capture);
  stream->capture.reset();
  if (stream->capture_mode == CAPTURE_GLOBAL) s.num_captures--;
  if (stream->capture_mode == CAPTURE_THREAD_LOCAL) s.num_captures_of[stream->capture_thread]--;
  return 0;
}

int launch_graph(Stream* stream, const std::vector<Work>& graph) {
  for (const Work& work : graph)
    if (int error = enqueue(stream, work)) return error;
  return 0;
}

bool is_capturing() {
  Scheduler& s = scheduler();
  Lock lock(s.lock);
  auto own = s.num_captures_of.find(std::this_thread::get_id());
  return s.num_captures != 0 || (own != s.num_captures_of.end() && own->second != 0);
}

}  // namespace fake

/// Sets the random order of what is still to run.
FAKE_EXPORT void fake_seed(uint64_t seed) {
  auto& s = fake::scheduler();
  fake::Lock lock(s.lock);
  s.random = emulate::Random{seed};
}
