// The kernels, written once for vectors of kBytes bytes. Included by each isa_*.cpp inside a namespace of its own, after
// it has defined
//
//   kBytes                                bytes in a vector: 16, 32 or 64
//   U8, U16, U32, U64, F32, F64           vectors of kBytes bytes (the macro HS_VECTORS does that)
//   uint64_t top_bits(const U8 (&)[..])   the top bits of 64 lanes as one word, lane 0 lowest; also for U16, U32, U64
//   F32 widen_half(const uint8_t*)        kBytes / 4 float16 from memory
//   void narrow_half(uint8_t*, F32)       and back, rounded to nearest even
//
// Everything here has internal linkage and uses no library templates: a function compiled for a newer processor must
// never be the copy that the linker keeps for all.

// Planes and fields are read as little-endian words.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "horovod_sign needs a little-endian processor");

constexpr int kBlock = 64;  // Coordinates handled together: one word of each plane.

template <class V>
HS_INLINE V load(const void* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
HS_INLINE void store(void* p, V v) {
  memcpy(p, &v, sizeof v);
}

// The word whose lowest `count` (1 to 64) bits are ones.
HS_INLINE uint64_t low_bits(int64_t count) { return ~uint64_t{0} >> (64 - count); }

// Asks for the kLength bytes that a stream reads kPrefetch bytes later. For loops that do much with each byte, and so do
// not by themselves run far enough ahead to keep memory busy; loops that do little are faster without.
constexpr int kPrefetch = 2048;

template <int kLength>
HS_INLINE void prefetch(const uint8_t* p) {
  for (int i = 0; i < kLength; i += 64) __builtin_prefetch(p + kPrefetch + i);
}

// Word w of a plane (all ones where there is none), of which only `bytes` bytes may be read.
HS_INLINE uint64_t word_at(const uint8_t* plane, int64_t w, int bytes) {
  uint64_t word = 0;
  if (!plane) return ~word;
  memcpy(&word, plane + 8 * w, bytes);
  return word;
}

// ---------------------------------------------------------------------------------------------------------------------
// Parts, for threads.

constexpr int64_t kPart = 1 << 20;  // Bytes that are read, for which waking a thread pays.

// Calls f(first, last) for equal ranges of 0 to `units`, of which each is `bytes` read, on up to `threads` threads.
template <class F>
void in_parts(int threads, int64_t units, int64_t bytes, const F& f) {
  const int64_t most = units * bytes / kPart;
  const int64_t parts = threads < most ? threads : most;
  if (parts <= 1) return f(int64_t{0}, units);
  struct Context {
    const F* f;
    int64_t units, parts;
  } context{&f, units, parts};
  const auto work = [](void* c, int part) {
    const Context& context = *static_cast<Context*>(c);
    (*context.f)(context.units * part / context.parts, context.units * (part + 1) / context.parts);
  };
  hs_run(static_cast<int>(parts), work, &context);
}

HS_INLINE int64_t words_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

// Calls f(segment, first coordinate, coordinates) for all of k segments, in parts that end at words.
template <class F>
void for_segments(int threads, int64_t k, const int64_t* n, int64_t bytes_of_word, const F& f) {
  int64_t words = 0;
  for (int64_t i = 0; i < k; ++i) words += words_of(n[i]);
  in_parts(threads, words, bytes_of_word, [&](int64_t first, int64_t last) {
    int64_t start = 0;  // The segment's first word, among all.
    for (int64_t i = 0; i < k && start < last; start += words_of(n[i++])) {
      const int64_t from = first > start ? kBlock * (first - start) : 0;
      const int64_t to = kBlock * (last - start) < n[i] ? kBlock * (last - start) : n[i];
      if (from < to) f(i, from, to - from);
    }
  });
}

// Adds to a number that parts share.
HS_INLINE void add_shared(int64_t* sum, int64_t x) { __atomic_fetch_add(sum, x, __ATOMIC_RELAXED); }

// ---------------------------------------------------------------------------------------------------------------------
// Element types. `Lane` is the vector of integers as wide as the element, kInf its infinity's bits.

template <class L, class W, W kInfinity>
struct Element {
  using Lane = L;
  using Word = W;
  static constexpr W kInf = kInfinity;
  static constexpr W kMagnitude = W(~W{0}) >> 1;
  static constexpr int kSize = sizeof(W);
  static constexpr int kVectors = kBlock * kSize / kBytes;
  using Block = Lane[kVectors];
};

using Half = Element<U16, uint16_t, 0x7c00>;
using Brain = Element<U16, uint16_t, 0x7f80>;
using Single = Element<U32, uint32_t, 0x7f800000>;
using Double = Element<U64, uint64_t, 0x7ff0000000000000>;

template <class T>
HS_INLINE void load_block(const uint8_t* p, typename T::Block& block) {
  HS_UNROLL
  for (int i = 0; i < T::kVectors; ++i) block[i] = load<typename T::Lane>(p + i * kBytes);
}

// ---------------------------------------------------------------------------------------------------------------------
// From numbers to planes.

// Top bit set: NaN. Magnitudes are below half the integer range, so the difference cannot overflow.
template <class T>
HS_INLINE typename T::Lane nan_lanes(typename T::Lane x) {
  return T::kInf - (x & T::kMagnitude);
}

// Top bit set: zero (0 - 1 borrows) or NaN.
template <class T>
HS_INLINE typename T::Lane idle_lanes(typename T::Lane x) {
  return ((x & T::kMagnitude) - typename T::Word{1}) | nan_lanes<T>(x);
}

template <class T>
HS_INLINE uint64_t sign_word(const typename T::Block& x) {
  return top_bits(x);
}

template <class T>
HS_INLINE uint64_t idle_word(const typename T::Block& x) {
  typename T::Block y;
  HS_UNROLL
  for (int i = 0; i < T::kVectors; ++i) y[i] = idle_lanes<T>(x[i]);
  return top_bits(y);
}

template <class T>
HS_INLINE uint64_t nan_word(const typename T::Block& x) {
  typename T::Block y;
  HS_UNROLL
  for (int i = 0; i < T::kVectors; ++i) y[i] = nan_lanes<T>(x[i]);
  return top_bits(y);
}

// Set where x < 0, by arithmetic on the bits as unsigned integers. Subtracting 1 clears the top bit of -0. Adding what
// lies between infinity and the largest integer of its sign overflows for negative NaNs, which clears theirs. The top bit
// of +0 is set by the first, and not by the second.
template <class T>
HS_INLINE uint64_t minus_word(const typename T::Block& x) {
  typename T::Block y;
  HS_UNROLL
  for (int i = 0; i < T::kVectors; ++i)
    y[i] = (x[i] - typename T::Word{1}) & (x[i] + typename T::Word(T::kMagnitude - T::kInf));
  return top_bits(y);
}

// Writes the words of one segment's ballot and counts what abstains.
template <int kMode>
struct Ballot {
  uint8_t* sign;
  uint8_t* nonzero;
  uint64_t zeros;
  uint64_t nans;

  // Word w from a block of which the coordinates `valid` count; the others become padding.
  template <class T>
  HS_INLINE void put(int64_t w, const typename T::Block& x, uint64_t valid) {
    const uint64_t minus = kMode == HS_ONEBIT ? minus_word<T>(x) : sign_word<T>(x);
    store(sign + 8 * w, minus & valid);
    if (kMode != HS_ABSTAIN) return;
    const uint64_t idle = idle_word<T>(x) & valid;
    store(nonzero + 8 * w, ~idle);
    if (HS_LIKELY(idle == 0)) return;
    const uint64_t nan = nan_word<T>(x) & valid;
    nans += __builtin_popcountll(nan);
    zeros += __builtin_popcountll(idle ^ nan);
  }
};

template <class T, int kMode>
void pack_segment(const uint8_t* x, int64_t n, Ballot<kMode>& ballot) {
  typename T::Block block;
  const int64_t words = n / kBlock;
  for (int64_t w = 0; w < words; ++w, x += kBlock * T::kSize) {
    if (kMode != HS_SIGNBIT) prefetch<kBlock * T::kSize>(x);
    load_block<T>(x, block);
    ballot.template put<T>(w, block, ~uint64_t{0});
  }
  if (const int64_t rest = n % kBlock) {
    uint8_t padded[kBlock * T::kSize] = {};
    memcpy(padded, x, rest * T::kSize);
    load_block<T>(padded, block);
    ballot.template put<T>(words, block, low_bits(rest));
  }
}

// The ballot of the words from a segment's coordinate `from` on.
template <int kMode>
HS_INLINE Ballot<kMode> ballot_at(uint8_t* sign, uint8_t* nonzero, int64_t off, int64_t from) {
  return {sign + off + from / 8, kMode == HS_ABSTAIN ? nonzero + off + from / 8 : nullptr, 0, 0};
}

// counts = {zeros, NaNs} of all parts.
template <int kMode>
HS_INLINE void add_counts(const Ballot<kMode>& ballot, int64_t* counts) {
  if (kMode != HS_ABSTAIN) return;
  add_shared(&counts[0], static_cast<int64_t>(ballot.zeros));
  add_shared(&counts[1], static_cast<int64_t>(ballot.nans));
}

template <class T, int kMode>
void pack_segments(int threads, int64_t k, const void* const* x, const int64_t* n, const int64_t* off, uint8_t* sign,
                   uint8_t* nonzero, int64_t* counts) {
  if (kMode == HS_ABSTAIN) counts[0] = counts[1] = 0;
  for_segments(threads, k, n, kBlock * T::kSize, [&](int64_t i, int64_t from, int64_t count) {
    Ballot<kMode> ballot = ballot_at<kMode>(sign, nonzero, off[i], from);
    pack_segment<T, kMode>(static_cast<const uint8_t*>(x[i]) + from * T::kSize, count, ballot);
    add_counts(ballot, counts);
  });
}

// Evaluates `call` with T as the element type that `dtype` names, and returns.
#define HS_FOR_DTYPE(dtype, call)   \
  switch (dtype) {                  \
    case HS_FLOAT16: {              \
      using T = Half;               \
      return call;                  \
    }                               \
    case HS_BFLOAT16: {             \
      using T = Brain;              \
      return call;                  \
    }                               \
    case HS_FLOAT32: {              \
      using T = Single;             \
      return call;                  \
    }                               \
    case HS_FLOAT64: {              \
      using T = Double;             \
      return call;                  \
    }                               \
    default:                        \
      return;                       \
  }

void pack(int threads, int dtype, int mode, int64_t k, const void* const* x, const int64_t* n, const int64_t* off,
          uint8_t* sign, uint8_t* nonzero, int64_t* counts) {
  switch (mode) {
    case HS_SIGNBIT:
      HS_FOR_DTYPE(dtype, (pack_segments<T, HS_SIGNBIT>(threads, k, x, n, off, sign, nonzero, counts)))
    case HS_ABSTAIN:
      HS_FOR_DTYPE(dtype, (pack_segments<T, HS_ABSTAIN>(threads, k, x, n, off, sign, nonzero, counts)))
    case HS_ONEBIT:
      HS_FOR_DTYPE(dtype, (pack_segments<T, HS_ONEBIT>(threads, k, x, n, off, sign, nonzero, counts)))
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Arithmetic types: how an element is computed with. `Number` is the vector of floats, kLanes its length.

struct InSingle {
  using Number = F32;
  using Scalar = float;
  using Bits = U32;
  using Word = uint32_t;
  static constexpr int kLanes = kBytes / 4;
  static constexpr Word kOne = 0x3f800000;
};

struct InDouble {
  using Number = F64;
  using Scalar = double;
  using Bits = U64;
  using Word = uint64_t;
  static constexpr int kLanes = kBytes / 8;
  static constexpr Word kOne = 0x3ff0000000000000;
};

typedef uint16_t NarrowU16 __attribute__((vector_size(kBytes / 2)));
typedef float NarrowF32 __attribute__((vector_size(kBytes / 2)));

template <class T>
struct Arithmetic;

template <>
struct Arithmetic<Half> : InSingle {
  static HS_INLINE F32 read(const uint8_t* p) { return widen_half(p); }
  static HS_INLINE void write(uint8_t* p, F32 x) { narrow_half(p, x); }
};

template <>
struct Arithmetic<Brain> : InSingle {
  static HS_INLINE F32 read(const uint8_t* p) {
    return (F32)(__builtin_convertvector(load<NarrowU16>(p), U32) << 16);
  }
  // Round to nearest even; a NaN keeps its sign and upper payload and becomes quiet.
  static HS_INLINE void write(uint8_t* p, F32 x) {
    const U32 bits = (U32)x;
    const U32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const U32 nan = (U32)(((I32)(Single::kInf - (bits & Single::kMagnitude))) >> 31);
    const U32 quiet = (bits >> 16) | 0x40u;
    store(p, __builtin_convertvector((rounded & ~nan) | (quiet & nan), NarrowU16));
  }
};

template <>
struct Arithmetic<Single> : InSingle {
  static HS_INLINE F32 read(const uint8_t* p) { return load<F32>(p); }
  static HS_INLINE void write(uint8_t* p, F32 x) { store(p, x); }
};

template <>
struct Arithmetic<Double> : InDouble {
  static HS_INLINE F64 read(const uint8_t* p) { return load<F64>(p); }
  static HS_INLINE void write(uint8_t* p, F64 x) { store(p, x); }
};

// kBytes / 4 elements as float32.
template <class T>
HS_INLINE F32 read_single(const uint8_t* p) {
  return Arithmetic<T>::read(p);
}

template <>
HS_INLINE F32 read_single<Double>(const uint8_t* p) {
  const NarrowF32 low = __builtin_convertvector(load<F64>(p), NarrowF32);
  const NarrowF32 high = __builtin_convertvector(load<F64>(p + kBytes), NarrowF32);
  F32 both;
  memcpy(&both, &low, sizeof low);
  memcpy(reinterpret_cast<uint8_t*>(&both) + sizeof low, &high, sizeof high);
  return both;
}

// ---------------------------------------------------------------------------------------------------------------------
// Momentum and ballot in one pass.

// Updates a block of the state m and leaves the interpolation v, as bits, in `vote`.
template <class T>
HS_INLINE void interpolate_block(const uint8_t* g, uint8_t* m, const float* c, Single::Block& vote) {
  const F32 zero = {};
  const F32 vote_m = zero + c[0], vote_g = zero + c[1], state_m = zero + c[2], state_g = zero + c[3];
  constexpr int kLanes = InSingle::kLanes;
  HS_UNROLL
  for (int i = 0; i < Single::kVectors; ++i) {
    const F32 gradient = read_single<T>(g + i * kLanes * T::kSize);
    const F32 old = load<F32>(m + i * kBytes);
    const U32 bits = (U32)gradient;
    const U32 finite = (U32)((bits & Single::kInf) != Single::kInf);
    const U32 v = (U32)(vote_m * old + vote_g * gradient);
    const U32 next = (U32)(state_m * old + state_g * gradient);
    store(m + i * kBytes, (next & finite) | ((U32)old & ~finite));
    vote[i] = (v & finite) | (bits & ~finite);
  }
}

template <class T, int kMode, bool kVoteGradient>
HS_INLINE void interpolate_word(const uint8_t* g, uint8_t* m, const float* c, int64_t w, uint64_t valid,
                                Ballot<kMode>& ballot) {
  Single::Block vote;
  interpolate_block<T>(g, m, c, vote);
  if (kVoteGradient) {
    typename T::Block block;
    load_block<T>(g, block);
    ballot.template put<T>(w, block, valid);
  } else {
    ballot.template put<Single>(w, vote, valid);
  }
}

template <class T, int kMode, bool kVoteGradient>
void interpolate_segment(const uint8_t* g, uint8_t* m, int64_t n, const float* c, Ballot<kMode>& ballot) {
  const int64_t words = n / kBlock;
  for (int64_t w = 0; w < words; ++w, g += kBlock * T::kSize, m += kBlock * 4) {
    prefetch<kBlock * T::kSize>(g);
    prefetch<kBlock * 4>(m);
    interpolate_word<T, kMode, kVoteGradient>(g, m, c, w, ~uint64_t{0}, ballot);
  }
  if (const int64_t rest = n % kBlock) {
    uint8_t padded_g[kBlock * T::kSize] = {}, padded_m[kBlock * 4] = {};
    memcpy(padded_g, g, rest * T::kSize);
    memcpy(padded_m, m, rest * 4);
    interpolate_word<T, kMode, kVoteGradient>(padded_g, padded_m, c, words, low_bits(rest), ballot);
    memcpy(m, padded_m, rest * 4);
  }
}

template <class T, int kMode>
void interpolate_segments(int threads, int64_t k, const void* const* g, void* const* m, const int64_t* n,
                          const int64_t* off, const float* c, int warm, uint8_t* sign, uint8_t* nonzero,
                          int64_t* counts) {
  if (kMode == HS_ABSTAIN) counts[0] = counts[1] = 0;
  for_segments(threads, k, n, kBlock * (T::kSize + 4), [&](int64_t i, int64_t from, int64_t count) {
    Ballot<kMode> ballot = ballot_at<kMode>(sign, nonzero, off[i], from);
    const uint8_t* gradient = static_cast<const uint8_t*>(g[i]) + from * T::kSize;
    uint8_t* state = static_cast<uint8_t*>(m[i]) + from * 4;
    if (warm)
      interpolate_segment<T, kMode, true>(gradient, state, count, c, ballot);
    else
      interpolate_segment<T, kMode, false>(gradient, state, count, c, ballot);
    add_counts(ballot, counts);
  });
}

void interpolate_pack(int threads, int dtype, int mode, int64_t k, const void* const* g, void* const* m,
                      const int64_t* n, const int64_t* off, const float* c, int warm, uint8_t* sign,
                      uint8_t* nonzero, int64_t* counts) {
  switch (mode) {
    case HS_SIGNBIT:
      HS_FOR_DTYPE(dtype, (interpolate_segments<T, HS_SIGNBIT>(threads, k, g, m, n, off, c, warm, sign,
                                                          nonzero, counts)))
    case HS_ABSTAIN:
      HS_FOR_DTYPE(dtype, (interpolate_segments<T, HS_ABSTAIN>(threads, k, g, m, n, off, c, warm, sign,
                                                          nonzero, counts)))
    case HS_ONEBIT:
      HS_FOR_DTYPE(dtype, (interpolate_segments<T, HS_ONEBIT>(threads, k, g, m, n, off, c, warm, sign,
                                                          nonzero, counts)))
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// From planes to numbers.

// Lane i of the result has bit i of `word` as its top bit.
template <class A>
HS_INLINE typename A::Bits bits_to_top(uint64_t word) {
  constexpr int kTop = 8 * sizeof(typename A::Word) - 1;
  typename A::Bits shift;
  HS_UNROLL
  for (int i = 0; i < A::kLanes; ++i) shift[i] = kTop - i;
  return (typename A::Bits{} + static_cast<typename A::Word>(word)) << shift;
}

// The votes of kLanes coordinates, from the lowest bits of two words.
template <class A>
HS_INLINE typename A::Number vote_lanes(uint64_t minus, uint64_t votes) {
  constexpr typename A::Word kTop = ~(typename A::Word(~typename A::Word{0}) >> 1);
  const typename A::Bits zero = {};
  const typename A::Bits magnitude =
      (typename A::Bits)((bits_to_top<A>(votes) & kTop) != zero) & A::kOne;
  return (typename A::Number)(magnitude | (bits_to_top<A>(minus & votes) & kTop));
}

// x - lr (vote + decay x)
template <class A, bool kDecay>
struct Step {
  typename A::Number lr, decay;

  HS_INLINE typename A::Number operator()(typename A::Number x, typename A::Number vote) const {
    return x - lr * (kDecay ? vote + decay * x : vote);
  }
};

template <class A>
struct Overwrite {
  HS_INLINE typename A::Number operator()(typename A::Number, typename A::Number vote) const { return vote; }
};

// x <- f(x, vote) for the 64 coordinates of a word of each plane.
template <class T, class F>
HS_INLINE void update_block(uint8_t* x, uint64_t minus, uint64_t votes, const F& f) {
  using A = Arithmetic<T>;
  HS_UNROLL
  for (int i = 0; i < kBlock; i += A::kLanes) {
    uint8_t* p = x + i * T::kSize;
    A::write(p, f(A::read(p), vote_lanes<A>(minus >> i, votes >> i)));
  }
}

template <class T, class F>
void update_segment(uint8_t* x, int64_t n, const uint8_t* sign, const uint8_t* nonzero, const F& f) {
  const int64_t words = n / kBlock;
  for (int64_t w = 0; w < words; ++w, x += kBlock * T::kSize) {
    prefetch<kBlock * T::kSize>(x);
    update_block<T>(x, word_at(sign, w, 8), word_at(nonzero, w, 8), f);
  }
  if (const int64_t rest = n % kBlock) {
    uint8_t padded[kBlock * T::kSize] = {};
    memcpy(padded, x, rest * T::kSize);
    update_block<T>(padded, word_at(sign, words, 8), word_at(nonzero, words, 8), f);
    memcpy(x, padded, rest * T::kSize);
  }
}

// x <- f(x, vote) for the coordinates of a segment from `from` on.
template <class T, class F>
HS_INLINE void update_part(void* x, int64_t from, int64_t count, const uint8_t* sign, const uint8_t* nonzero,
                           int64_t off, const F& f) {
  const int64_t byte = off + from / 8;
  update_segment<T>(static_cast<uint8_t*>(x) + from * T::kSize, count, sign + byte, nonzero ? nonzero + byte : nullptr,
                    f);
}

template <class T>
void unpack_segments(int threads, int64_t k, void* const* out, const int64_t* n, const int64_t* off,
                     const uint8_t* sign, const uint8_t* nonzero) {
  for_segments(threads, k, n, kBlock * T::kSize, [&](int64_t i, int64_t from, int64_t count) {
    update_part<T>(out[i], from, count, sign, nonzero, off[i], Overwrite<Arithmetic<T>>{});
  });
}

void unpack(int threads, int dtype, int64_t k, void* const* out, const int64_t* n, const int64_t* off,
            const uint8_t* sign, const uint8_t* nonzero) {
  HS_FOR_DTYPE(dtype, (unpack_segments<T>(threads, k, out, n, off, sign, nonzero)))
}

template <class T>
void apply_segments(int threads, int64_t k, void* const* x, const int64_t* n, const int64_t* off, const uint8_t* sign,
                    const uint8_t* nonzero, const double* lr, const double* weight_decay) {
  using A = Arithmetic<T>;
  const typename A::Number zero = {};
  for_segments(threads, k, n, kBlock * T::kSize, [&](int64_t i, int64_t from, int64_t count) {
    const typename A::Scalar rate = static_cast<typename A::Scalar>(lr[i]);
    const typename A::Scalar decay = static_cast<typename A::Scalar>(weight_decay[i]);
    if (weight_decay[i] != 0)
      update_part<T>(x[i], from, count, sign, nonzero, off[i], Step<A, true>{zero + rate, zero + decay});
    else
      update_part<T>(x[i], from, count, sign, nonzero, off[i], Step<A, false>{zero + rate, zero});
  });
}

void apply(int threads, int dtype, int64_t k, void* const* x, const int64_t* n, const int64_t* off, const uint8_t* sign,
           const uint8_t* nonzero, const double* lr, const double* weight_decay) {
  HS_FOR_DTYPE(dtype, (apply_segments<T>(threads, k, x, n, off, sign, nonzero, lr, weight_decay)))
}

// The lowest kBytes bits of a word as bytes, 0 or 1. Each 64-bit lane takes eight bits and moves them apart, in steps.
HS_INLINE U8 byte_lanes(uint64_t word) {
  U64 shift;
  HS_UNROLL
  for (int i = 0; i < kBytes / 8; ++i) shift[i] = 8 * i;
  U64 x = ((U64{} + word) >> shift) & 0xff;
  x = (x | x << 28) & 0x0000000f0000000f;
  x |= x << 14;
  x |= x << 7;
  return (U8)(x & 0x0101010101010101);
}

// 64 votes as bytes: votes minus twice those for minus.
HS_INLINE void vote_bytes(uint64_t minus, uint64_t votes, uint8_t* out) {
  HS_UNROLL
  for (int i = 0; i < kBlock; i += kBytes)
    store(out + i, byte_lanes(votes >> i) - 2 * byte_lanes((minus & votes) >> i));
}

void unpack_bytes(const uint8_t* sign, const uint8_t* nonzero, int64_t n, uint8_t* bytes) {
  const int64_t words = n / kBlock;
  for (int64_t w = 0; w < words; ++w) vote_bytes(word_at(sign, w, 8), word_at(nonzero, w, 8), bytes + kBlock * w);
  if (const int rest = static_cast<int>(n % kBlock)) {
    uint8_t last[kBlock];
    vote_bytes(word_at(sign, words, (rest + 7) / 8), word_at(nonzero, words, (rest + 7) / 8), last);
    memcpy(bytes + kBlock * words, last, rest);
  }
}

// Calls f(first byte of the plane, coordinates) for n coordinates, in parts that end at words.
template <class F>
void for_words(int threads, int64_t n, int64_t bytes_of_word, const F& f) {
  in_parts(threads, words_of(n), bytes_of_word, [&](int64_t first, int64_t last) {
    f(8 * first, (kBlock * last < n ? kBlock * last : n) - kBlock * first);
  });
}

HS_INLINE const uint8_t* from_byte(const uint8_t* plane, int64_t byte) { return plane ? plane + byte : nullptr; }

void unpack_int8(int threads, const uint8_t* sign, const uint8_t* nonzero, int64_t n, int8_t* out) {
  for_words(threads, n, kBlock, [&](int64_t byte, int64_t count) {
    unpack_bytes(sign + byte, from_byte(nonzero, byte), count, reinterpret_cast<uint8_t*>(out) + 8 * byte);
  });
}

#include "tally.inc.h"

#include "counts.inc.h"

// ---------------------------------------------------------------------------------------------------------------------
// Small ones.

int all_ones(const uint8_t* plane, int64_t nbytes) {
  constexpr int kStep = 4 * kBytes;
  int64_t i = 0;
  for (; i + kStep <= nbytes; i += kStep) {
    const U64 v = load<U64>(plane + i) & load<U64>(plane + i + kBytes) & load<U64>(plane + i + 2 * kBytes) &
                  load<U64>(plane + i + 3 * kBytes);
    uint64_t all = ~uint64_t{0};
    HS_UNROLL
    for (int lane = 0; lane < kBytes / 8; ++lane) all &= v[lane];
    if (all != ~uint64_t{0}) return 0;
  }
  for (; i < nbytes; ++i)
    if (plane[i] != 0xff) return 0;
  return 1;
}

HS_INLINE uint64_t agreement_word(const uint8_t* sign_a, const uint8_t* nonzero_a, const uint8_t* sign_b,
                                  const uint8_t* nonzero_b, int64_t w, int bytes) {
  const uint64_t both = word_at(nonzero_a, w, bytes) & word_at(nonzero_b, w, bytes);
  return both & ~(word_at(sign_a, w, bytes) ^ word_at(sign_b, w, bytes));
}

int64_t agreement_part(const uint8_t* sign_a, const uint8_t* nonzero_a, const uint8_t* sign_b,
                       const uint8_t* nonzero_b, int64_t n) {
  const int64_t words = n / kBlock;
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w)
    count += __builtin_popcountll(agreement_word(sign_a, nonzero_a, sign_b, nonzero_b, w, 8));
  if (const int rest = static_cast<int>(n % kBlock)) {
    const uint64_t last = agreement_word(sign_a, nonzero_a, sign_b, nonzero_b, words, (rest + 7) / 8);
    count += __builtin_popcountll(last & low_bits(rest));
  }
  return count;
}

int64_t agreement(int threads, const uint8_t* sign_a, const uint8_t* nonzero_a, const uint8_t* sign_b,
                  const uint8_t* nonzero_b, int64_t n) {
  int64_t total = 0;
  for_words(threads, n, 4 * 8, [&](int64_t byte, int64_t count) {
    add_shared(&total, agreement_part(sign_a + byte, from_byte(nonzero_a, byte), sign_b + byte,
                                      from_byte(nonzero_b, byte), count));
  });
  return total;
}

uint64_t read_loop(const uint8_t* data, int64_t nbytes) {
  constexpr int kStreams = 8;
  U64 sum[kStreams] = {};
  int64_t i = 0;
  for (; i + kStreams * kBytes <= nbytes; i += kStreams * kBytes) {
    HS_UNROLL
    for (int j = 0; j < kStreams; ++j) sum[j] += load<U64>(data + i + j * kBytes);
  }
  uint64_t total = 0;
  for (int j = 0; j < kStreams; ++j)
    for (int lane = 0; lane < kBytes / 8; ++lane) total += sum[j][lane];
  for (; i < nbytes; ++i) total += data[i];
  return total;
}

void read_write_loop(uint8_t* data, int64_t nbytes) {
  constexpr int kStep = 4 * kBytes;
  int64_t i = 0;
  for (; i + kStep <= nbytes; i += kStep) {
    HS_UNROLL
    for (int j = 0; j < kStep; j += kBytes) store(data + i + j, ~load<U64>(data + i + j));
  }
  for (; i < nbytes; ++i) data[i] = static_cast<uint8_t>(~data[i]);
}

constexpr HsKernels table(const char* name) {
  return {name,          pack,          interpolate_pack, tally,     unpack_int8, unpack,         apply,
          encode_counts, decode_counts, all_ones,         agreement, read_loop,   read_write_loop};
}
