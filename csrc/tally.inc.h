// The majority of M ballots, with bit-sliced counters: a counter is an array of planes, plane i holding bit i of every
// coordinate's count, and adding a ballot is a chain of full adders on whole vectors.
//
// With N votes for minus and Z abstentions, minus wins where N > M - Z - N, that is where T = 2 N + Z > M, and ties are
// where T = M. Counters therefore start at 2^top - 1 - M instead of 0: then bit `top` is the answer, and all the lower
// bits are ones exactly at a tie. Where no ballot has a nonzero plane, T = N and the threshold is M / 2.

constexpr int kGroup = 8;           // Ballots added together.
constexpr int kTallyBytes = 1024;   // Bytes of every ballot handled together: the counters stay in the L1 cache.
constexpr int kTallyVectors = kTallyBytes / kBytes;
constexpr int kMaxTop = 31;

struct Threshold {
  int top;
  bool planes, ties;
  uint64_t bias;

  // The smallest counter in which eight planes can be added at level 0 (and at level 1, when there are planes) has
  // three bits below `top` (or four).
  Threshold(int64_t m, bool with_planes) : top(with_planes ? 4 : 3), planes(with_planes) {
    const int64_t threshold = planes ? m : m / 2;
    ties = planes || m % 2 == 0;
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

// counter += 2^level * (the sum of eight planes); the counter has bits 0 to top.
template <int kLevel>
HS_INLINE void add_eight(U64* counter, int top, const U64 (&in)[kGroup]) {
  U64 one = counter[kLevel], two = counter[kLevel + 1], four = counter[kLevel + 2];
  U64 two_a, two_b, four_a, four_b, carry;
  full_add(two_a, one, one, in[0], in[1]);
  full_add(two_b, one, one, in[2], in[3]);
  full_add(four_a, two, two, two_a, two_b);
  full_add(two_a, one, one, in[4], in[5]);
  full_add(two_b, one, one, in[6], in[7]);
  full_add(four_b, two, two, two_a, two_b);
  full_add(carry, four, four, four_a, four_b);
  counter[kLevel] = one;
  counter[kLevel + 1] = two;
  counter[kLevel + 2] = four;
  for (int i = kLevel + 3; i <= top; ++i) {
    const U64 next = counter[i] & carry;
    counter[i] ^= carry;
    carry = next;
  }
}

// Where eight ballots' planes are to be read from; `planes` says whether any of the eight has a nonzero plane.
struct Group {
  const uint8_t* sign[kGroup];
  const uint8_t* nonzero[kGroup];
  bool planes;
};

struct Filled {
  alignas(64) uint8_t bytes[kTallyBytes];
  constexpr explicit Filled(uint8_t value) : bytes() {
    for (int i = 0; i < kTallyBytes; ++i) bytes[i] = value;
  }
};

constexpr Filled kNoMinus(0x00);
constexpr Filled kAllVote(0xff);

// The group of ballots from number `first`, from byte `pos` on. Missing ballots get planes that add nothing.
HS_INLINE Group group_at(int64_t m, const uint8_t* const* sign, const uint8_t* const* nonzero, int64_t first,
                         int64_t pos) {
  Group group;
  group.planes = false;
  for (int j = 0; j < kGroup; ++j) {
    const bool exists = first + j < m;
    const uint8_t* votes = exists ? nonzero[first + j] : nullptr;
    group.sign[j] = exists ? sign[first + j] + pos : kNoMinus.bytes;
    group.nonzero[j] = votes ? votes + pos : kAllVote.bytes;
    group.planes |= votes != nullptr;
  }
  return group;
}

// Adds vector `offset` bytes into the group. kPlanes: the counter counts 2 N + Z, otherwise N.
template <bool kPlanes>
HS_INLINE void add_group(U64* counter, int top, const Group& group, bool group_planes, int offset) {
  U64 minus[kGroup], idle[kGroup];
  HS_UNROLL
  for (int j = 0; j < kGroup; ++j) minus[j] = load<U64>(group.sign[j] + offset);
  if (kPlanes && group_planes) {
    HS_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      const U64 votes = load<U64>(group.nonzero[j] + offset);
      minus[j] &= votes;
      idle[j] = ~votes;
    }
    add_eight<0>(counter, top, idle);
  }
  add_eight<kPlanes ? 1 : 0>(counter, top, minus);
}

struct Output {
  uint8_t* sign;
  uint8_t* nonzero;
  int64_t ties;

  HS_INLINE void put(const Threshold& threshold, const U64* counter, int top, int64_t pos) {
    store(sign + pos, counter[top]);
    if (!threshold.ties) {
      if (nonzero) store(nonzero + pos, ~U64{});
      return;
    }
    U64 tie = ~counter[top];
    for (int i = 0; i < top; ++i) tie &= counter[i];
    if (nonzero) store(nonzero + pos, ~tie);
    HS_UNROLL
    for (int lane = 0; lane < kBytes / 8; ++lane) ties += __builtin_popcountll(tie[lane]);
  }
};

// Up to eight ballots: the counters never leave the registers. kTop is the threshold's top, a constant here.
template <bool kPlanes, int kTop>
HS_INLINE void tally_few(const Threshold& threshold, const Group& group, int vectors, Output& out, int64_t pos) {
  for (int v = 0; v < vectors; ++v) {
    U64 counter[kTop + 1];
    HS_UNROLL
    for (int i = 0; i <= kTop; ++i) counter[i] = threshold.start(i);
    add_group<kPlanes>(counter, kTop, group, true, v * kBytes);
    out.put(threshold, counter, kTop, pos + v * kBytes);
  }
}

template <bool kPlanes>
HS_INLINE void tally_many(const Threshold& threshold, int64_t m, const uint8_t* const* sign,
                          const uint8_t* const* nonzero, int64_t from, int vectors, Output& out, int64_t pos) {
  U64 counters[kTallyVectors * (kMaxTop + 1)];
  const int levels = threshold.top + 1;
  for (int v = 0; v < vectors; ++v)
    for (int i = 0; i < levels; ++i) counters[v * levels + i] = threshold.start(i);
  for (int64_t first = 0; first < m; first += kGroup) {
    const Group group = group_at(m, sign, nonzero, first, from);
    if (kPlanes && group.planes)
      for (int v = 0; v < vectors; ++v)
        add_group<kPlanes>(counters + v * levels, threshold.top, group, true, v * kBytes);
    else
      for (int v = 0; v < vectors; ++v)
        add_group<kPlanes>(counters + v * levels, threshold.top, group, false, v * kBytes);
  }
  for (int v = 0; v < vectors; ++v) out.put(threshold, counters + v * levels, threshold.top, pos + v * kBytes);
}

// Whole vectors of all ballots, from byte `from` of the inputs to byte `pos` of the outputs.
HS_INLINE void tally_vectors(const Threshold& threshold, int64_t m, const uint8_t* const* sign,
                             const uint8_t* const* nonzero, int64_t from, int vectors, Output& out, int64_t pos) {
  if (m <= kGroup) {
    const Group group = group_at(m, sign, nonzero, 0, from);
    if (threshold.planes)
      tally_few<true, 4>(threshold, group, vectors, out, pos);
    else
      tally_few<false, 3>(threshold, group, vectors, out, pos);
  } else if (threshold.planes) {
    tally_many<true>(threshold, m, sign, nonzero, from, vectors, out, pos);
  } else {
    tally_many<false>(threshold, m, sign, nonzero, from, vectors, out, pos);
  }
}

// The last bytes, less than a vector: each ballot's are copied into a vector of their own, a group at a time.
HS_INLINE void tally_rest(const Threshold& threshold, int64_t m, const uint8_t* const* sign,
                          const uint8_t* const* nonzero, int64_t from, int rest, Output& out) {
  U64 counter[kMaxTop + 1];
  for (int i = 0; i <= threshold.top; ++i) counter[i] = threshold.start(i);
  for (int64_t first = 0; first < m; first += kGroup) {
    Group group = group_at(m, sign, nonzero, first, from);
    alignas(64) uint8_t padded[2 * kGroup][kBytes] = {};
    for (int j = 0; j < kGroup; ++j) {
      memcpy(padded[j], group.sign[j], rest);
      memcpy(padded[kGroup + j], group.nonzero[j], rest);
      group.sign[j] = padded[j];
      group.nonzero[j] = padded[kGroup + j];
    }
    if (threshold.planes)
      add_group<true>(counter, threshold.top, group, true, 0);
    else
      add_group<false>(counter, threshold.top, group, false, 0);
  }
  // Bytes after the last count nothing: only `rest` bytes of the tie plane are looked at.
  U64 tie = ~counter[threshold.top];
  for (int i = 0; i < threshold.top; ++i) tie &= counter[i];
  uint8_t bytes[kBytes];
  store(bytes, counter[threshold.top]);
  memcpy(out.sign + from, bytes, rest);
  store(bytes, tie);
  for (int i = 0; i < rest; ++i) {
    const uint8_t tied = threshold.ties ? bytes[i] : 0;
    if (out.nonzero) out.nonzero[from + i] = static_cast<uint8_t>(~tied);
    out.ties += __builtin_popcount(tied);
  }
}

int64_t tally(int64_t m, const uint8_t* const* sign, const uint8_t* const* nonzero, int64_t nbytes, uint8_t* out_sign,
              uint8_t* out_nonzero) {
  bool planes = false;
  for (int64_t i = 0; i < m; ++i) planes |= nonzero[i] != nullptr;
  const Threshold threshold(m, planes);
  Output out{out_sign, out_nonzero, 0};
  int64_t pos = 0;
  for (; pos + kTallyBytes <= nbytes; pos += kTallyBytes)
    tally_vectors(threshold, m, sign, nonzero, pos, kTallyVectors, out, pos);
  const int vectors = static_cast<int>((nbytes - pos) / kBytes);
  if (vectors) tally_vectors(threshold, m, sign, nonzero, pos, vectors, out, pos);
  pos += vectors * kBytes;
  if (pos < nbytes) tally_rest(threshold, m, sign, nonzero, pos, static_cast<int>(nbytes - pos), out);
  return out.ties;
}
