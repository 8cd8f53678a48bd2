// Switches in assembly on x86-64, by ucontext elsewhere.
#include "fiber.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>

// FAKE_UCONTEXT: to test the other way on x86-64.
#if defined(__x86_64__) && !defined(FAKE_UCONTEXT)
#define HAS_ASSEMBLY 1
#else
#define HAS_ASSEMBLY 0
#include <ucontext.h>
#endif

namespace emulate {
namespace {

constexpr size_t PAGE = 4096, STACK = 96 << 10;

/// Bytes by which the tops of successive stacks differ beyond whole stacks.
size_t colour() {
  static std::atomic<size_t> n{0};
  return n++ % 32 * 192;
}

}  // namespace

#if HAS_ASSEMBLY

extern "C" void emulate_switch(void** saved, void* to);
__asm__(R"(
.text
.hidden emulate_switch
.globl emulate_switch
.type emulate_switch, @function
emulate_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emulate_switch, . - emulate_switch
)");

void rewind_fiber(Fiber* fiber, void (*entry)()) {
  // As if `entry` had been called by nobody.
  void** at = (void**)fiber->top;
  *--at = nullptr;
  *--at = (void*)entry;
  for (int i = 0; i < 6; i++) *--at = nullptr;
  fiber->saved = at;
}

void switch_fiber(Fiber* from, Fiber* to) { emulate_switch(&from->saved, to->saved); }

#else

void rewind_fiber(Fiber* fiber, void (*entry)()) {
  auto* context = (ucontext_t*)fiber->context;
  getcontext(context);
  context->uc_stack.ss_sp = fiber->top - STACK + PAGE + 8192;
  context->uc_stack.ss_size = STACK - PAGE - 8192;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}

void switch_fiber(Fiber* from, Fiber* to) {
  if (!from->context) from->context = new ucontext_t;
  swapcontext((ucontext_t*)from->context, (ucontext_t*)to->context);
}

#endif

Fiber* new_fiber(void (*entry)()) {
  void* bytes = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (bytes == MAP_FAILED || mprotect(bytes, PAGE, PROT_NONE)) {
    perror("emulated GPU: no memory for a thread's stack");
    abort();
  }
  auto* fiber = new Fiber;
  fiber->top = (char*)bytes + STACK - colour();
#if !HAS_ASSEMBLY
  fiber->context = new ucontext_t;
#endif
  rewind_fiber(fiber, entry);
  return fiber;
}

}  // namespace emulate
