// The majority of M ballots, with bit-sliced counters: a counter is an array of planes, plane i holding bit i of every
// coordinate's count, and adding a ballot is a chain of full adders on whole vectors.
//
// With N votes for minus and Z abstentions, minus wins where N > M - Z - N, that is where T = 2 N + Z > M, and ties are
// where T = M. Counters therefore start at 2^top - 1 - M instead of 0: then bit `top` is the answer, and all the lower
// bits are ones exactly at a tie. Where no ballot has a nonzero plane, T = N and the threshold is M / 2.

//
// Ballots are copied, a block of each at a time, to a table. Read in step from where they lie, they would evict each
// other: planes of large tensors start at the same place in their pages, so that all ballots' lines compete for the
// same few places of the L1 cache. While a block is copied the one to be copied next is asked for.

#ifndef HS_TB
#define HS_TB 512
#endif
#ifndef TLOC
#define TLOC 2
#endif
constexpr int kMaxGroup = 16;        // Ballots added together, at most.
constexpr int kTallyBytes = HS_TB;  // Bytes of every ballot handled together.
constexpr int kTallyVectors = kTallyBytes / kBytes;
constexpr int kMaxTop = 31;

// The lowest `top` that leaves room for groups of kGroup planes added at level 0 and, when there are planes, at level 1.
template <bool kPlanes, int kGroup>
constexpr int kLowestTop = (kGroup == 8 ? 3 : 4) + (kPlanes ? 1 : 0);

struct Threshold {
  int top;
  bool ties;  // Whether there can be any.
  uint64_t bias;

  Threshold(int64_t m, bool planes, int lowest_top) : top(lowest_top), ties(planes || m % 2 == 0) {
    const int64_t threshold = planes ? m : m / 2;
    while ((int64_t{1} << top) <= threshold) ++top;
    bias = (uint64_t{1} << top) - 1 - threshold;
  }

  HS_INLINE U64 start(int level) const { return U64{} - (bias >> level & 1); }
};

HS_INLINE void full_add(U64& high, U64& low, U64 a, U64 b, U64 c) {
  const U64 u = a ^ b;
  high = (a & b) | (u & c);
  low = u ^ c;
}

// Adds the planes in(first) to in(first + 7) to the three bits at c, and returns the plane that carries to the fourth.
template <class In>
HS_INLINE U64 add_eight(U64* c, int first, const In& in) {
  U64 two_a, two_b, four_a, four_b, carry;
  full_add(two_a, c[0], c[0], in(first), in(first + 1));
  full_add(two_b, c[0], c[0], in(first + 2), in(first + 3));
  full_add(four_a, c[1], c[1], two_a, two_b);
  full_add(two_a, c[0], c[0], in(first + 4), in(first + 5));
  full_add(two_b, c[0], c[0], in(first + 6), in(first + 7));
  full_add(four_b, c[1], c[1], two_a, two_b);
  full_add(carry, c[2], c[2], four_a, four_b);
  return carry;
}

// Adds kGroup planes to the counter's bits from kLevel to `top`.
template <int kLevel, int kGroup, class In>
HS_INLINE void add_planes(U64* counter, int top, const In& in) {
  U64 carry = add_eight(counter + kLevel, 0, in);
  if (kGroup == 16) full_add(carry, counter[kLevel + 3], counter[kLevel + 3], carry, add_eight(counter + kLevel, 8, in));
  for (int i = kLevel + (kGroup == 16 ? 4 : 3); i <= top; ++i) {
    const U64 next = counter[i] & carry;
    counter[i] ^= carry;
    carry = next;
  }
}

// A place in the ballots: from number `first` on, from byte `pos` on.
struct Place {
  int64_t first, pos;
};

struct Ballots {
  int64_t m;
  const uint8_t* const* sign;
  const uint8_t* const* nonzero;
};

HS_INLINE U64 load_part(const uint8_t* p, int bytes) {
  U64 v = {};
  memcpy(&v, p, bytes);
  return v;
}

// A block of each of a group's ballots, as planes to be added: who says minus, and who abstains.
template <bool kPlanes, int kGroup>
struct Table {
  alignas(64) U64 minus[kGroup][kTallyVectors];
  alignas(64) U64 idle[kPlanes ? kGroup : 1][kTallyVectors];
  bool any_idle;  // Whether `idle` has to be added.

  // Reads `bytes` bytes of the ballots at a place, and asks for those at `next`. What is missing to fill the group or
  // the last vector becomes zeros, which add nothing.
  HS_INLINE void read(const Ballots& ballots, Place at, Place next, int bytes) {
    any_idle = false;
    for (int j = 0; kPlanes && j < kGroup; ++j) any_idle |= at.first + j < ballots.m && ballots.nonzero[at.first + j];
    for (int j = 0; j < kGroup; ++j) {
      if (next.first + j < ballots.m) ask(ballots, next, j);
      if (at.first + j >= ballots.m)
        clear(j);
      else if (kPlanes && ballots.nonzero[at.first + j])
        read_both(j, ballots.sign[at.first + j] + at.pos, ballots.nonzero[at.first + j] + at.pos, bytes);
      else
        read_sign(j, ballots.sign[at.first + j] + at.pos, bytes);
    }
  }

 private:
  static HS_INLINE void ask(const Ballots& ballots, Place next, int j) {
    HS_UNROLL
    for (int i = 0; i < kTallyBytes; i += 64) __builtin_prefetch(ballots.sign[next.first + j] + next.pos + i, 0, TLOC);
    if (!kPlanes || !ballots.nonzero[next.first + j]) return;
    HS_UNROLL
    for (int i = 0; i < kTallyBytes; i += 64)
      __builtin_prefetch(ballots.nonzero[next.first + j] + next.pos + i, 0, TLOC);
  }

  HS_INLINE void clear(int j) {
    memset(minus[j], 0, kTallyBytes);
    if (kPlanes && any_idle) memset(idle[j], 0, kTallyBytes);
  }

  HS_INLINE void read_sign(int j, const uint8_t* sign, int bytes) {
    const int whole = bytes / kBytes, rest = bytes % kBytes;
    for (int v = 0; v < whole; ++v) minus[j][v] = load<U64>(sign + v * kBytes);
    if (rest) minus[j][whole] = load_part(sign + whole * kBytes, rest);
    if (kPlanes && any_idle) memset(idle[j], 0, kTallyBytes);
  }

  HS_INLINE void read_both(int j, const uint8_t* sign, const uint8_t* nonzero, int bytes) {
    const int whole = bytes / kBytes, rest = bytes % kBytes;
    for (int v = 0; v < whole; ++v) {
      const U64 votes = load<U64>(nonzero + v * kBytes);
      minus[j][v] = load<U64>(sign + v * kBytes) & votes;
      idle[j][v] = ~votes;
    }
    if (rest) {
      const U64 votes = load_part(nonzero + whole * kBytes, rest), valid = ~load_ones(rest);
      minus[j][whole] = load_part(sign + whole * kBytes, rest) & votes;
      idle[j][whole] = ~(votes | valid);
    }
  }

  // Ones in the first `bytes` bytes.
  static HS_INLINE U64 load_ones(int bytes) {
    U64 v = {};
    memset(&v, 0xff, bytes);
    return v;
  }
};

// Adds vector v of a group. kPlanes: the counter counts 2 N + Z, otherwise N.
template <bool kPlanes, int kGroup>
HS_INLINE void add_group(U64* counter, int top, const Table<kPlanes, kGroup>& table, bool any_idle, int v) {
  if (kPlanes && any_idle) add_planes<0, kGroup>(counter, top, [&](int j) HS_LAMBDA { return table.idle[j][v]; });
  add_planes<kPlanes ? 1 : 0, kGroup>(counter, top, [&](int j) HS_LAMBDA { return table.minus[j][v]; });
}

// A block's results: the sign plane and the plane of ties.
struct Results {
  alignas(64) U64 minus[kTallyVectors];
  alignas(64) U64 tie[kTallyVectors];

  HS_INLINE void set(int v, const U64* counter, int top) {
    minus[v] = counter[top];
    U64 all = ~counter[top];
    for (int i = 0; i < top; ++i) all &= counter[i];
    tie[v] = all;
  }
};

// Up to kGroup ballots: the counters never leave the registers.
template <bool kPlanes, int kGroup>
void tally_few(const Threshold& threshold, const Ballots& ballots, int64_t pos, int bytes, Results& results) {
  constexpr int kTop = kLowestTop<kPlanes, kGroup>;
  Table<kPlanes, kGroup> table;
  table.read(ballots, {0, pos}, {0, pos + kTallyBytes}, bytes);
  U64 start[kTop + 1];
  for (int i = 0; i <= kTop; ++i) start[i] = threshold.start(i);
  for (int v = 0; v * kBytes < bytes; ++v) {
    U64 counter[kTop + 1];
    HS_UNROLL
    for (int i = 0; i <= kTop; ++i) counter[i] = start[i];
    add_group<kPlanes, kGroup>(counter, kTop, table, true, v);
    results.set(v, counter, kTop);
  }
}

// Any number of ballots, a group at a time over the whole block, the counters being in memory.
template <bool kPlanes>
void tally_many(const Threshold& threshold, const Ballots& ballots, int64_t pos, int bytes, Results& results) {
  Table<kPlanes, kMaxGroup> table;
  U64 counters[kTallyVectors * (kMaxTop + 1)];
  const int top = threshold.top, levels = top + 1;
  for (int v = 0; v < kTallyVectors; ++v)
    for (int i = 0; i < levels; ++i) counters[v * levels + i] = threshold.start(i);
  for (int64_t first = 0; first < ballots.m; first += kMaxGroup) {
    const bool last = first + kMaxGroup >= ballots.m;
    table.read(ballots, {first, pos}, last ? Place{0, pos + kTallyBytes} : Place{first + kMaxGroup, pos}, bytes);
    if (table.any_idle)
      for (int v = 0; v * kBytes < bytes; ++v) add_group<kPlanes>(counters + v * levels, top, table, true, v);
    else
      for (int v = 0; v * kBytes < bytes; ++v) add_group<kPlanes>(counters + v * levels, top, table, false, v);
  }
  for (int v = 0; v * kBytes < bytes; ++v) results.set(v, counters + v * levels, top);
}

struct Output {
  uint8_t* sign;
  uint8_t* nonzero;
  int64_t ties;

  // Copies the first `bytes` bytes of the results to byte `pos` of the outputs, and counts ties in them.
  void put(const Threshold& threshold, Results& results, int64_t pos, int bytes) {
    memcpy(sign + pos, results.minus, bytes);
    uint8_t* tie = reinterpret_cast<uint8_t*>(results.tie);
    if (!threshold.ties) {
      if (nonzero) memset(nonzero + pos, 0xff, bytes);
      return;
    }
    memset(tie + bytes, 0, -bytes & 7);  // Up to the next word: bytes that are not there have no ties.
    const int words = (bytes + 7) / 8;
    int64_t count = 0;
    for (int w = 0; w < words; ++w) count += __builtin_popcountll(load<uint64_t>(tie + 8 * w));
    ties += count;
    if (!nonzero) return;
    for (int v = 0; v * kBytes < bytes; ++v) results.tie[v] = ~results.tie[v];
    memcpy(nonzero + pos, tie, bytes);
  }
};

template <bool kPlanes>
int64_t tally_ballots(const Ballots& ballots, int64_t nbytes, uint8_t* out_sign, uint8_t* out_nonzero) {
  const int lowest = ballots.m <= 8 ? kLowestTop<kPlanes, 8> : kLowestTop<kPlanes, kMaxGroup>;
  const Threshold threshold(ballots.m, kPlanes, lowest);
  Output out{out_sign, out_nonzero, 0};
  Results results;
  for (int64_t pos = 0; pos < nbytes; pos += kTallyBytes) {
    const int bytes = nbytes - pos < kTallyBytes ? static_cast<int>(nbytes - pos) : kTallyBytes;
    if (ballots.m <= 8)
      tally_few<kPlanes, 8>(threshold, ballots, pos, bytes, results);
    else if (ballots.m <= kMaxGroup)
      tally_few<kPlanes, kMaxGroup>(threshold, ballots, pos, bytes, results);
    else
      tally_many<kPlanes>(threshold, ballots, pos, bytes, results);
    out.put(threshold, results, pos, bytes);
  }
  return out.ties;
}

int64_t tally(int64_t m, const uint8_t* const* sign, const uint8_t* const* nonzero, int64_t nbytes, uint8_t* out_sign,
              uint8_t* out_nonzero) {
  const Ballots ballots{m, sign, nonzero};
  bool planes = false;
  for (int64_t i = 0; i < m; ++i) planes |= nonzero[i] != nullptr;
  return planes ? tally_ballots<true>(ballots, nbytes, out_sign, out_nonzero)
                : tally_ballots<false>(ballots, nbytes, out_sign, out_nonzero);
}
