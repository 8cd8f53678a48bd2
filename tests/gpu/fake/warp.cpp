// Operations of a warp: shuffles, votes, products on tensor cores, loads of matrices; and copies to shared memory.
#include "warp.h"

#include <cstdio>

#include "runtime.h"

namespace emulate {
namespace {

/// Waits for all lanes of `mask` that have not returned; the last one acts for all.
void gather(const char* name, unsigned mask, void* operand, void (*act)(Warp&, unsigned)) {
  Warp& warp = this_warp();
  unsigned own = 1u << lane();
  if (!(mask & own)) trap("a warp operation with a mask that its caller is not in");
  // Lanes may wait with all others while those still exchange among themselves, so there can be several.
  unsigned slot = warp.find(mask);
  if (slot == 32) {
    slot = (unsigned)__builtin_ctz(~warp.open);
    warp.gatherings[slot] = {mask, 0, name, act};
    warp.open |= 1u << slot;
  }
  Gathering& g = warp.gatherings[slot];
  if (g.act != act) {
    static char text[128];
    snprintf(text, sizeof text, "lanes of one warp are at %s and at %s, both with mask %08x", g.name, name, mask);
    trap(text);
  }
  warp.operands[lane()] = operand;
  g.arrived |= own;
  if (g.arrived == (mask & warp.alive)) {
    warp.open &= ~(1u << slot);
    unsigned lanes = g.arrived;
    act(warp, lanes);
    release(lanes & ~own);
  } else {
    wait_for_others();
  }
}

template <class F> void for_lanes(unsigned lanes, F f) {
  for (; lanes; lanes &= lanes - 1) f((unsigned)__builtin_ctz(lanes));
}

struct Shuffle {
  uint64_t value, result;
  unsigned from;
};
void shuffle_all(Warp& warp, unsigned lanes) {
  for_lanes(lanes, [&](unsigned l) {
    auto* own = (Shuffle*)warp.operands[l];
    unsigned from = own->from & 31;
    if (!(lanes >> from & 1)) trap("a shuffle reads a lane that does not take part");
    own->result = ((Shuffle*)warp.operands[from])->value;
  });
}

struct Ballot {
  bool predicate;
  unsigned result;
};
void ballot_all(Warp& warp, unsigned lanes) {
  unsigned votes = 0;
  for_lanes(lanes, [&](unsigned l) { votes |= (unsigned)((Ballot*)warp.operands[l])->predicate << l; });
  for_lanes(lanes, [&](unsigned l) { ((Ballot*)warp.operands[l])->result = votes; });
}

void meet(Warp&, unsigned) {}

void need_whole_warp(unsigned lanes) {
  if (lanes != ~0u) trap("an operation of a whole warp without some of its lanes");
}

struct Product {
  float* d;
  const unsigned *a, *b;
};
typedef float Row __attribute__((vector_size(32)));

/// Lane l has g = l / 4, t = l % 4. A [16, 16]: word i holds row g + 8 (i % 2), columns 2 t + 8 (i / 2) and the next.
/// B [16, 8]: word i holds rows 2 t + 8 i and the next of column g. D [16, 8]: float i is row g + 8 (i / 2), column
/// 2 t + i % 2. Sums are f32 and in order; those of a GPU have an order of their own.
void multiply_all(Warp& warp, unsigned lanes) {
  need_whole_warp(lanes);
  float a[16][16];
  Row b[16], d[16];
  for (unsigned l = 0; l < 32; l++) {
    auto* p = (const Product*)warp.operands[l];
    unsigned g = l / 4, t = l % 4;
    for (unsigned i = 0; i < 4; i++) {
      float* to = &a[g + 8 * (i % 2)][2 * t + 8 * (i / 2)];
      to[0] = bits_of<float>(p->a[i] << 16);
      to[1] = bits_of<float>(p->a[i] & 0xffff0000u);
      ((float*)&d[g + 8 * (i / 2)])[2 * t + i % 2] = p->d[i];
    }
    for (unsigned i = 0; i < 2; i++) {
      ((float*)&b[2 * t + 8 * i])[g] = bits_of<float>(p->b[i] << 16);
      ((float*)&b[2 * t + 8 * i + 1])[g] = bits_of<float>(p->b[i] & 0xffff0000u);
    }
  }
  for (unsigned i = 0; i < 16; i++)
    for (unsigned k = 0; k < 16; k++) d[i] += a[i][k] * b[k];
  for (unsigned l = 0; l < 32; l++) {
    auto* p = (const Product*)warp.operands[l];
    for (unsigned i = 0; i < 4; i++) p->d[i] = ((float*)&d[l / 4 + 8 * (i / 2)])[2 * (l % 4) + i % 2];
  }
}

struct Matrices {
  unsigned* r;
  const char* row;
};
template <bool transposed> void load_all(Warp& warp, unsigned lanes) {
  need_whole_warp(lanes);
  const char* rows[32];
  for (unsigned l = 0; l < 32; l++) {
    rows[l] = ((const Matrices*)warp.operands[l])->row;
    if ((uintptr_t)rows[l] % 16) trap("ldmatrix from an address that is no multiple of 16");
    if (!is_shared(rows[l], 16)) trap("ldmatrix from an address outside shared memory");
  }
  for (unsigned l = 0; l < 32; l++)
    for (unsigned i = 0; i < 4; i++) {
      uint16_t pair[2];
      for (unsigned h = 0; h < 2; h++) {
        unsigned row = transposed ? 2 * (l % 4) + h : l / 4, column = transposed ? l / 4 : 2 * (l % 4) + h;
        memcpy(&pair[h], rows[8 * i + row] + 2 * column, 2);
      }
      ((Matrices*)warp.operands[l])->r[i] = pair[0] | (unsigned)pair[1] << 16;
    }
}

}  // namespace

unsigned Warp::lane_left() {
  unsigned free = 0;
  for_lanes(open, [&](unsigned slot) {
    Gathering& g = gatherings[slot];
    if (g.arrived != (g.mask & alive)) return;
    open &= ~(1u << slot);
    g.act(*this, g.arrived);
    free |= g.arrived;
  });
  return free;
}

void warp_barrier(unsigned mask) { gather("__syncwarp", mask, nullptr, meet); }

uint64_t shuffle(unsigned mask, uint64_t value, unsigned from) {
  Shuffle own{value, 0, from};
  gather("a shuffle", mask, &own, shuffle_all);
  return own.result;
}

unsigned ballot(unsigned mask, bool predicate) {
  Ballot own{predicate, 0};
  gather("a vote", mask, &own, ballot_all);
  return own.result;
}

void mma_bf16(float* d, const unsigned* a, const unsigned* b) {
  Product own{d, a, b};
  gather("mma", ~0u, &own, multiply_all);
}

void load_matrices(unsigned* r, const void* row, bool transposed) {
  Matrices own{r, (const char*)row};
  gather("ldmatrix", ~0u, &own, transposed ? load_all<true> : load_all<false>);
}

}  // namespace emulate
