// The driver's streams, events and graphs; and the way in for libcublasLt.
#include "driver_stream.h"

#include "settings.h"
#include "stream.h"

using namespace fake;

namespace {

struct Graph {
  std::vector<Work> works;
};

}  // namespace

FAKE_EXPORT int cuStreamCreate(void** stream, unsigned) {
  FAKE_ENTER();
  *stream = new_stream();
  return 0;
}
FAKE_EXPORT int cuStreamCreateWithPriority(void** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
FAKE_EXPORT int cuStreamDestroy_v2(void* stream) { return delete_stream((Stream*)stream); }
FAKE_EXPORT int cuStreamSynchronize(void* stream) {
  FAKE_ENTER();
  return wait_for(stream_of(stream));
}
FAKE_EXPORT int cuStreamQuery(void* stream) {
  FAKE_ENTER();
  return is_idle(stream_of(stream)) ? 0 : NOT_READY;
}
FAKE_EXPORT int cuStreamWaitEvent(void* stream, void* event, unsigned) {
  FAKE_ENTER();
  return wait_event(stream_of(stream), (Event*)event);
}

FAKE_EXPORT int cuEventCreate(void** event, unsigned) {
  FAKE_ENTER();
  *event = new Event;
  return 0;
}
FAKE_EXPORT int cuEventDestroy_v2(void* event) {
  delete (Event*)event;
  return 0;
}
FAKE_EXPORT int cuEventRecord(void* event, void* stream) {
  FAKE_ENTER();
  return record((Event*)event, stream_of(stream));
}
FAKE_EXPORT int cuEventSynchronize(void* event) {
  FAKE_ENTER();
  return wait_for((Event*)event);
}
FAKE_EXPORT int cuEventQuery(void* event) {
  FAKE_ENTER();
  return query((Event*)event);
}
FAKE_EXPORT int cuEventElapsedTime_v2(float* ms, void* from, void* to) {
  FAKE_ENTER();
  return elapsed_ms(ms, (Event*)from, (Event*)to);
}
FAKE_EXPORT int cuEventElapsedTime(float* ms, void* from, void* to) { return cuEventElapsedTime_v2(ms, from, to); }

FAKE_EXPORT int cuStreamBeginCapture_v2(void* stream, int mode) {
  FAKE_ENTER();
  return stream ? begin_capture((Stream*)stream, mode) : CAPTURE_UNSUPPORTED;
}
FAKE_EXPORT int cuStreamEndCapture(void* stream, void** graph) {
  FAKE_ENTER();
  auto* made = new Graph;
  if (int error = end_capture(stream_of(stream), &made->works)) {
    delete made;
    *graph = nullptr;
    return error;
  }
  *graph = made;
  return 0;
}
FAKE_EXPORT int cuStreamIsCapturing(void* stream, int* status) {
  FAKE_ENTER();
  *status = stream_of(stream)->capture ? 1 : 0;
  return 0;
}
FAKE_EXPORT int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  FAKE_ENTER();
  *executable = new Graph(*(Graph*)graph);
  return 0;
}
FAKE_EXPORT int cuGraphLaunch(void* executable, void* stream) {
  FAKE_ENTER();
  return launch_graph(stream_of(stream), ((Graph*)executable)->works);
}
FAKE_EXPORT int cuGraphUpload(void*, void*) {
  FAKE_ENTER();
  return 0;
}
FAKE_EXPORT int cuGraphDestroy(void* graph) {
  delete (Graph*)graph;
  return 0;
}
FAKE_EXPORT int cuGraphExecDestroy(void* executable) {
  delete (Graph*)executable;
  return 0;
}

FAKE_EXPORT int fake_enqueue(void* stream, const char* name, const uint64_t* reads, const uint64_t* writes,
                             void (*run)(void*), void* data, void (*drop)(void*)) {
  Work work;
  work.name = name;
  for (; *reads; reads++) work.accesses.push_back({*reads, false});
  for (; *writes; writes++) work.accesses.push_back({*writes, true});
  std::shared_ptr<void> owned(data, drop);
  work.run = [=](uint64_t) { run(owned.get()); };
  return enqueue(stream_of(stream), std::move(work));
}
