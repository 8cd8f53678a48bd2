// The schedule of one block. A thread starts on the fiber of one that has ended, without a switch, and keeps the fiber
// when it has to wait; so a kernel without barriers is a loop of calls.
#include "block.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>

#include "fiber.h"
#include "kernel.h"
#include "shared.h"
#include "warp.h"

namespace emulate {

thread_local Running* running = nullptr;
std::atomic<uint64_t> num_switches{0};

namespace {

/// A cp.async that its thread has not waited for.
struct Copy {
  void* to;
  const void* from;  // null for zeros
};

struct Thread {
  uint3 index;
  Fiber* fiber = nullptr;  // while it waits
  std::vector<Copy> copies;
};

/// All that one thread of the system needs to run blocks; kept between launches. `running` points to it.
struct Machine : Running {
  const Launch* launch = nullptr;
  Fiber scheduler;
  Fiber* current_fiber = nullptr;
  unsigned current = 0;  // thread of the block
  unsigned num_threads = 0, num_alive = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<unsigned> ready_warps;  // that have a thread which can go on
  std::vector<Fiber*> idle;
  DynamicShared dynamic;
  StaticShared statics;
  Random random{0};
  // The barrier of the block: who waits, and the vote of __syncthreads_or and its kin.
  unsigned num_arrived = 0, num_votes = 0;
  struct { unsigned num_votes, num_voters; } vote[2] = {};
  unsigned barrier_parity = 0;
  bool has_waited = false;  // some thread of this launch
  std::atomic<uint64_t> num_switches{0};
  char text[256];  // of where()
};

Machine& machine() { return *static_cast<Machine*>(running); }

/// Machines that no launch uses.
class Idle {
 public:
  Machine* take() {
    std::lock_guard<std::mutex> guard(lock_);
    if (machines_.empty()) return new Machine;
    Machine* last = machines_.back();
    machines_.pop_back();
    return last;
  }
  void give_back(Machine* machine) {
    std::lock_guard<std::mutex> guard(lock_);
    machines_.push_back(machine);
  }

 private:
  std::mutex lock_;
  std::vector<Machine*> machines_;
};

Idle& idle_machines() {
  static Idle* all = new Idle;  // used by threads until the process ends
  return *all;
}

void set_ready(Machine& m, unsigned warp, unsigned lanes) {
  Warp& w = m.warps[warp];
  if (!w.ready && lanes) m.ready_warps.push_back(warp);
  w.ready |= lanes;
}

/// Takes a thread that can go on: mostly of the same warp, at random otherwise. -1 if none can.
int pick(Machine& m) {
  if (m.ready_warps.empty()) return -1;
  unsigned warp = m.current / 32, at = (unsigned)m.ready_warps.size() - 1;
  bool shuffled = m.launch->seed != 0;
  uint64_t r = shuffled ? m.random.next() : 0;
  if (!m.warps[warp].ready || (shuffled && (r & 15) == 0)) {
    if (shuffled) at = (unsigned)((r >> 8 & 0xffffffff) * m.ready_warps.size() >> 32);
    else for (unsigned i = 0; i < m.ready_warps.size(); i++) if (m.ready_warps[i] < m.ready_warps[at]) at = i;
    warp = m.ready_warps[at];
  }
  Warp& w = m.warps[warp];
  unsigned turn = shuffled ? r >> 58 & 31 : 0;
  unsigned turned = turn ? w.ready >> turn | w.ready << (32 - turn) : w.ready;
  unsigned lane = (unsigned)(__builtin_ctz(turned) + turn) & 31;
  w.ready &= ~(1u << lane);
  if (!w.ready) {
    if (m.ready_warps[at] != warp) for (at = 0; m.ready_warps[at] != warp;) at++;
    m.ready_warps[at] = m.ready_warps.back();
    m.ready_warps.pop_back();
  }
  return (int)(warp * 32 + lane);
}

void make_current(Machine& m, unsigned thread) {
  m.current = thread;
  m.thread = m.threads[thread].index;
}

/// Ends the barrier of the block if all who are left have arrived.
void open_barrier(Machine& m) {
  if (!m.num_alive || m.num_arrived < m.num_alive) return;
  m.vote[m.barrier_parity++ & 1] = {m.num_votes, m.num_arrived};
  m.num_arrived = m.num_votes = 0;
  for (unsigned i = 0; i < m.warps.size(); i++) {
    unsigned lanes = m.warps[i].at_barrier;
    m.warps[i].at_barrier = 0;
    set_ready(m, i, lanes);
  }
}

void thread_ended(Machine& m) {
  m.threads[m.current].copies.clear();  // nobody can see them any more
  Warp& w = m.warps[m.current / 32];
  w.alive &= ~(1u << m.current % 32);
  m.num_alive--;
  open_barrier(m);
  if (unsigned lanes = w.lane_left()) set_ready(m, m.current / 32, lanes);
}

void begin_threads();

/// Goes on with a thread that can; called by one that waits.
void leave(Machine& m) {
  int next = pick(m);
  if (next < 0) trap("all threads wait for one that never comes (a barrier that not all of them reach)");
  Thread& from = m.threads[m.current];
  from.fiber = m.current_fiber;
  Thread& to = m.threads[(unsigned)next];
  make_current(m, (unsigned)next);
  m.has_waited = true;
  Fiber* fiber = to.fiber;
  if (!fiber) {
    if (m.idle.empty()) {
      fiber = new_fiber(begin_threads);
    } else {
      fiber = m.idle.back();
      m.idle.pop_back();
      rewind_fiber(fiber, begin_threads);
    }
  }
  to.fiber = nullptr;
  m.current_fiber = fiber;
  m.num_switches++;
  switch_fiber(from.fiber, fiber);
}

/// The loop of a fiber: runs the current thread, then others that have not begun. Ends by a switch to one that has.
void begin_threads() {
  Machine& m = machine();
  for (;;) {
    m.launch->kernel->call(m.launch->args);
    thread_ended(m);
    Fiber* own = m.current_fiber;
    if (!m.num_alive) {
      m.idle.push_back(own);
      switch_fiber(own, &m.scheduler);
      abort();
    }
    int next = pick(m);
    if (next < 0) trap("the rest of the block waits for a thread that has returned");
    make_current(m, (unsigned)next);
    Thread& to = m.threads[(unsigned)next];
    if (!to.fiber) continue;
    m.current_fiber = to.fiber;
    to.fiber = nullptr;
    m.idle.push_back(own);
    m.num_switches++;
    switch_fiber(own, m.current_fiber);
    abort();
  }
}

void run_block(Machine& m, bool is_first) {
  m.num_alive = m.num_threads;
  m.num_arrived = m.num_votes = 0;
  m.ready_warps.clear();
  for (unsigned i = 0; i < m.warps.size(); i++) {
    unsigned left = m.num_threads - i * 32, lanes = left >= 32 ? ~0u : (1u << left) - 1;
    m.warps[i].reset(lanes);
    set_ready(m, i, lanes);
  }
  memset(m.shared, 0xff, m.launch->shared_bytes);
  // Threads that do not wait for each other share no memory either.
  if (is_first || m.has_waited) fill_with_nan(m.statics);
  m.current = 0;
  if (m.idle.empty()) m.idle.push_back(new_fiber(begin_threads));
  m.current_fiber = m.idle.back();
  m.idle.pop_back();
  rewind_fiber(m.current_fiber, begin_threads);
  make_current(m, (unsigned)pick(m));
  switch_fiber(&m.scheduler, m.current_fiber);
}

}  // namespace

void wait_for_others() { leave(machine()); }
void release(unsigned lanes) { set_ready(machine(), machine().current / 32, lanes); }
Warp& this_warp() { return machine().warps[machine().current / 32]; }
unsigned this_thread() { return machine().current; }
unsigned lane() { return machine().current % 32; }

int block_vote(int predicate, int kind) {
  Machine& m = machine();
  unsigned parity = m.barrier_parity & 1;
  m.num_votes += predicate != 0;
  if (++m.num_arrived == m.num_alive) {
    open_barrier(m);
  } else {
    m.warps[m.current / 32].at_barrier |= 1u << m.current % 32;
    leave(m);
  }
  // Kept for one more barrier: nobody can open the one after it without this thread.
  auto vote = m.vote[parity];
  return kind == 0 ? vote.num_votes != 0 : kind == 1 ? vote.num_votes == vote.num_voters : (int)vote.num_votes;
}
void block_barrier() { block_vote(0, 0); }

bool is_shared(const void* begin, unsigned bytes) {
  Machine& m = machine();
  auto *from = (const char*)begin, *to = from + bytes;
  return (from >= m.shared && to <= m.shared + m.launch->shared_bytes) ||
         (from >= m.statics.begin && to <= m.statics.begin + m.statics.bytes);
}

void copy_async(void* to, const void* from, bool present) {
  if ((uintptr_t)to % 16 || (uintptr_t)from % 16) trap("cp.async with an address that is no multiple of 16");
  if (!is_shared(to, 16)) trap("cp.async to an address outside shared memory");
  machine().threads[machine().current].copies.push_back({to, present ? from : nullptr});
}

void wait_for_copies() {
  auto& copies = machine().threads[machine().current].copies;
  for (const Copy& copy : copies) {
    if (copy.from) memcpy(copy.to, copy.from, 16);
    else memset(copy.to, 0, 16);
  }
  copies.clear();
}

void run(const Launch& launch) {
  Machine& m = *idle_machines().take();
  m.launch = &launch;
  m.statics = static_shared();
  m.block = launch.block;
  m.grid = launch.grid;
  m.shared = m.dynamic.begin(launch.shared_bytes);
  m.num_threads = launch.block.x * launch.block.y * launch.block.z;
  m.threads.assign(m.num_threads, Thread{});
  for (unsigned i = 0; i < m.num_threads; i++)
    m.threads[i].index = {i % launch.block.x, i / launch.block.x % launch.block.y,
                          i / (launch.block.x * launch.block.y)};
  m.warps.resize((m.num_threads + 31) / 32);
  m.random = Random{launch.seed};
  m.has_waited = false;
  running = &m;
  uint64_t num_blocks = (uint64_t)launch.grid.x * launch.grid.y * launch.grid.z;
  // A step that has no divisor in common with the number of blocks visits each once, in an order that looks random.
  uint64_t at = 0, step = 1;
  if (launch.seed && num_blocks > 1) {
    auto gcd = [](uint64_t a, uint64_t b) { while (b) a %= b, std::swap(a, b); return a; };
    at = m.random.next() % num_blocks;
    do step = m.random.next() % num_blocks; while (gcd(step, num_blocks) != 1);
  }
  for (uint64_t i = 0; i < num_blocks; i++) {
    m.block_index = {(unsigned)(at % launch.grid.x), (unsigned)(at / launch.grid.x % launch.grid.y),
                     (unsigned)(at / ((uint64_t)launch.grid.x * launch.grid.y))};
    run_block(m, i == 0);
    at = (at + step) % num_blocks;
  }
  running = nullptr;
  num_switches += m.num_switches;
  m.num_switches = 0;
  idle_machines().give_back(&m);
}

const char* where() {
  if (!running) return "";
  const auto& b = running->block_index;
  const auto& t = running->thread;
  char(&text)[256] = machine().text;
  snprintf(text, sizeof text, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u)", machine().launch->kernel->name, b.x,
           b.y, b.z, t.x, t.y, t.z);
  return text;
}

void trap(const char* why) {
  fprintf(stderr, "emulated GPU: %s: %s\n", where(), why);
  abort();
}

}  // namespace emulate
