// The majority of M ballots, with bit-sliced counters: a counter is an array of planes, plane i holding bit i of every
// coordinate's count, and adding a ballot is a chain of full adders on whole vectors.
//
// With N votes for minus and Z abstentions, minus wins where N > M - Z - N, that is where T = 2 N + Z > M, and ties are
// where T = M. Counters therefore start at 2^top - 1 - M instead of 0: then bit `top` is the answer, and all the lower
// bits are ones exactly at a tie. Where no ballot has a nonzero plane, T = N and the threshold is M / 2.

constexpr int kLine = 64;  // Bytes of a cache line: ballots are read in step, a line of each at a time.
constexpr int kLineVectors = kLine / kBytes;
constexpr int kFewBytes = 512;    // Bytes of every ballot handled together when there are few ballots.
constexpr int kManyBytes = 2048;  // And when there are many: the counters, in memory, stay near the L1 cache.
constexpr int kMaxVectors = kManyBytes / kBytes;
constexpr int kMaxTop = 31;

// The lowest `top` that leaves room for kGroup (8 or 16) planes added at level 0 and, when there are planes, at level 1.
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

struct Filled {
  alignas(64) uint8_t bytes[kManyBytes];
  constexpr explicit Filled(uint8_t value) : bytes() {
    for (int i = 0; i < kManyBytes; ++i) bytes[i] = value;
  }
};

constexpr Filled kNoMinus(0x00);
constexpr Filled kAllVote(0xff);

struct Ballots {
  int64_t m;
  const uint8_t* const* sign;
  const uint8_t* const* nonzero;
};

// Where a block of each of a group's ballots is to be read from. Missing ballots and planes are replaced by constant
// ones, which add nothing.
template <int kGroup>
struct Group {
  const uint8_t* sign[kGroup];
  const uint8_t* nonzero[kGroup];
  bool planes = false;  // Whether any of the ballots has a nonzero plane.

  HS_INLINE Group(const Ballots& ballots, int64_t first, int64_t pos) {
    for (int j = 0; j < kGroup; ++j) {
      const bool exists = first + j < ballots.m;
      const uint8_t* votes = exists ? ballots.nonzero[first + j] : nullptr;
      sign[j] = exists ? ballots.sign[first + j] + pos : kNoMinus.bytes;
      nonzero[j] = votes ? votes + pos : kAllVote.bytes;
      planes |= votes != nullptr;
    }
  }

  // Asks for the line at `offset`.
  template <bool kIdle>
  HS_INLINE void ask(int offset) const {
    for (int j = 0; j < kGroup; ++j) __builtin_prefetch(sign[j] + offset);
    for (int j = 0; kIdle && j < kGroup; ++j) __builtin_prefetch(nonzero[j] + offset);
  }
};

// The first `bytes` bytes (less than a line) of a group's ballots, made into whole lines of votes for plus.
template <int kGroup>
struct LastLines {
  alignas(64) uint8_t sign[kGroup][kLine], nonzero[kGroup][kLine];

  HS_INLINE Group<kGroup> copy(const Group<kGroup>& group, int offset, int bytes) {
    Group<kGroup> here = group;
    memset(sign, 0, sizeof sign);
    memset(nonzero, 0xff, sizeof nonzero);
    for (int j = 0; j < kGroup; ++j) {
      memcpy(sign[j], group.sign[j] + offset, bytes);
      memcpy(nonzero[j], group.nonzero[j] + offset, bytes);
      here.sign[j] = sign[j];
      here.nonzero[j] = nonzero[j];
    }
    return here;
  }
};

// Adds the vector at `offset` of a group's ballots. kPlanes: the counter counts 2 N + Z, otherwise N.
template <bool kPlanes, bool kIdle, int kGroup>
HS_INLINE void add_group(U64* counter, int top, const Group<kGroup>& group, int offset) {
  if (kIdle) {
    add_planes<0, kGroup>(counter, top, [&](int j) HS_LAMBDA { return ~load<U64>(group.nonzero[j] + offset); });
    add_planes<1, kGroup>(counter, top, [&](int j) HS_LAMBDA {
      return load<U64>(group.sign[j] + offset) & load<U64>(group.nonzero[j] + offset);
    });
  } else {
    add_planes<kPlanes ? 1 : 0, kGroup>(counter, top,
                                        [&](int j) HS_LAMBDA { return load<U64>(group.sign[j] + offset); });
  }
}

// Calls add(group, offset, v) for every vector v of a group's block; the last line may be a part of one.
template <int kGroup, class Add>
HS_INLINE void for_vectors(const Group<kGroup>& group, int bytes, const Add& add) {
  const int whole = bytes / kLine, rest = bytes % kLine;
  for (int line = 0; line < whole; ++line) {
    HS_UNROLL
    for (int v = 0; v < kLineVectors; ++v) add(group, line * kLine + v * kBytes, line * kLineVectors + v);
  }
  if (rest) {
    LastLines<kGroup> last;
    const Group<kGroup> copy = last.copy(group, whole * kLine, rest);
    for (int v = 0; v < kLineVectors; ++v) add(copy, v * kBytes, whole * kLineVectors + v);
  }
}

// A block's results: the sign plane and the plane of ties.
struct Results {
  alignas(64) U64 minus[kMaxVectors];
  alignas(64) U64 tie[kMaxVectors];

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
  U64 start[kTop + 1];
  for (int i = 0; i <= kTop; ++i) start[i] = threshold.start(i);
  for_vectors(Group<kGroup>(ballots, 0, pos), bytes, [&](const Group<kGroup>& group, int offset, int v) HS_LAMBDA {
    U64 counter[kTop + 1];
    HS_UNROLL
    for (int i = 0; i <= kTop; ++i) counter[i] = start[i];
    add_group<kPlanes, kPlanes>(counter, kTop, group, offset);
    results.set(v, counter, kTop);
  });
}

// Adds a group to the counters of a block, which are in memory, and asks for the same bytes of the next group.
template <bool kPlanes, bool kIdle>
HS_INLINE void add_block(U64* counters, int top, const Group<8>& group, const Group<8>& next, int bytes) {
  for_vectors(group, bytes, [&](const Group<8>& some, int offset, int v) HS_LAMBDA {
    if (v % kLineVectors == 0) next.ask<kIdle>(v * kBytes);
    add_group<kPlanes, kIdle>(counters + v * (top + 1), top, some, offset);
  });
}

// Any number of ballots, a group at a time over the whole block.
template <bool kPlanes>
void tally_many(const Threshold& threshold, const Ballots& ballots, int64_t pos, int bytes, Results& results) {
  U64 counters[kMaxVectors * (kMaxTop + 1)];
  const int top = threshold.top, levels = top + 1;
  for (int v = 0; v < kMaxVectors; ++v)
    for (int i = 0; i < levels; ++i) counters[v * levels + i] = threshold.start(i);
  for (int64_t first = 0; first < ballots.m; first += 8) {
    const Group<8> group(ballots, first, pos);
    const bool last = first + 8 >= ballots.m;
    const Group<8> next(ballots, last ? 0 : first + 8, last ? pos + kManyBytes : pos);
    if (kPlanes && group.planes)
      add_block<kPlanes, kPlanes>(counters, top, group, next, bytes);
    else
      add_block<kPlanes, false>(counters, top, group, next, bytes);
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
    const int words = (bytes + 7) / 8;  // Bytes after the last have no ties: all vote plus there.
    int64_t count = 0;
    for (int w = 0; w < words; ++w) count += __builtin_popcountll(load<uint64_t>(tie + 8 * w));
    ties += count;
    if (!nonzero) return;
    for (int v = 0; v * kBytes < bytes; ++v) results.tie[v] = ~results.tie[v];
    memcpy(nonzero + pos, tie, bytes);
  }
};

// The bytes from `first` to `last`.
template <bool kPlanes>
int64_t tally_ballots(const Ballots& ballots, int64_t first, int64_t last, uint8_t* out_sign, uint8_t* out_nonzero) {
  // Sixteen ballots with planes would be more streams than prefetching in hardware keeps up with.
  const bool eight = ballots.m <= 8, sixteen = !kPlanes && !eight && ballots.m <= 16;
  const int most = eight || sixteen ? kFewBytes : kManyBytes;
  const Threshold threshold(ballots.m, kPlanes, sixteen ? kLowestTop<kPlanes, 16> : kLowestTop<kPlanes, 8>);
  Output out{out_sign, out_nonzero, 0};
  Results results;
  for (int64_t pos = first; pos < last; pos += most) {
    const int bytes = last - pos < most ? static_cast<int>(last - pos) : most;
    if (eight)
      tally_few<kPlanes, 8>(threshold, ballots, pos, bytes, results);
    else if (sixteen)
      tally_few<false, 16>(threshold, ballots, pos, bytes, results);
    else
      tally_many<kPlanes>(threshold, ballots, pos, bytes, results);
    out.put(threshold, results, pos, bytes);
  }
  return out.ties;
}

int64_t tally(int threads, int64_t m, const uint8_t* const* sign, const uint8_t* const* nonzero, int64_t nbytes,
              uint8_t* out_sign, uint8_t* out_nonzero) {
  const Ballots ballots{m, sign, nonzero};
  int64_t ties = 0, planes = m;
  for (int64_t i = 0; i < m; ++i) planes += nonzero[i] != nullptr;
  const int64_t units = (nbytes + kManyBytes - 1) / kManyBytes;
  in_parts(threads, units, planes * kManyBytes, [&](int64_t first, int64_t last) {
    const int64_t end = last == units ? nbytes : last * kManyBytes;
    add_shared(&ties, planes > m ? tally_ballots<true>(ballots, first * kManyBytes, end, out_sign, out_nonzero)
                                 : tally_ballots<false>(ballots, first * kManyBytes, end, out_sign, out_nonzero));
  });
  return ties;
}
