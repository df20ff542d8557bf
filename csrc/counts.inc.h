// Votes as small integer fields, for transports that can only add: a ballot's field is sign + 1, so that after the sum
// over V ballots a coordinate's majority is the comparison of its field with V.

typedef uint8_t HalfU8 __attribute__((vector_size(kBytes / 2)));
typedef uint8_t QuarterU8 __attribute__((vector_size(kBytes / 4)));

using Byte = Element<U8, uint8_t, 0>;
using Short = Element<U16, uint16_t, 0>;

// Writes a block of fields that take a byte each as fields of kBits.
template <int kBits>
HS_INLINE void write_fields(const Byte::Block& fields, uint8_t* out) {
  HS_UNROLL
  for (int i = 0; i < Byte::kVectors; ++i) {
    if constexpr (kBits == 8) {
      store(out + i * kBytes, fields[i]);
    } else if constexpr (kBits == 4) {
      const U16 pairs = (U16)fields[i];
      store(out + i * kBytes / 2, __builtin_convertvector((pairs | pairs >> 4) & 0xff, HalfU8));
    } else if constexpr (kBits == 2) {
      U32 fours = (U32)fields[i];
      fours |= fours >> 6;
      store(out + i * kBytes / 4, __builtin_convertvector((fours | fours >> 12) & 0xff, QuarterU8));
    } else {
      HalfU8 halves[2];
      memcpy(halves, &fields[i], kBytes);
      store(out + 2 * i * kBytes, __builtin_convertvector(halves[0], U16));
      store(out + 2 * i * kBytes + kBytes, __builtin_convertvector(halves[1], U16));
    }
  }
}

// The fields of 64 coordinates; bits after the `valid` ones become zeros.
template <int kBits>
HS_INLINE void encode_block(uint64_t minus, uint64_t votes, uint64_t valid, uint8_t* out) {
  const uint64_t plus = votes & ~minus & valid, idle = ~votes & valid;
  Byte::Block fields;
  HS_UNROLL
  for (int i = 0; i < Byte::kVectors; ++i)
    fields[i] = 2 * byte_lanes(plus >> (i * kBytes)) + byte_lanes(idle >> (i * kBytes));
  write_fields<kBits>(fields, out);
}

template <int kBits>
void encode_fields(const uint8_t* sign, const uint8_t* nonzero, int64_t n, uint8_t* fields) {
  const int64_t words = n / kBlock;
  for (int64_t w = 0; w < words; ++w, fields += 8 * kBits)
    encode_block<kBits>(word_at(sign, w, 8), word_at(nonzero, w, 8), ~uint64_t{0}, fields);
  if (const int rest = static_cast<int>(n % kBlock)) {
    const int bytes = (rest + 7) / 8;
    uint8_t padded[8 * kBits];
    encode_block<kBits>(word_at(sign, words, bytes), word_at(nonzero, words, bytes), low_bits(rest), padded);
    memcpy(fields, padded, (rest * kBits + 7) / 8);
  }
}

void encode_part(int bits, const uint8_t* sign, const uint8_t* nonzero, int64_t n, uint8_t* fields) {
  switch (bits) {
    case 2:
      return encode_fields<2>(sign, nonzero, n, fields);
    case 4:
      return encode_fields<4>(sign, nonzero, n, fields);
    case 8:
      return encode_fields<8>(sign, nonzero, n, fields);
    case 16:
      return encode_fields<16>(sign, nonzero, n, fields);
  }
}

void encode_counts(int threads, int bits, const uint8_t* sign, const uint8_t* nonzero, int64_t n, uint8_t* fields) {
  for_words(threads, n, 8 * bits, [&](int64_t byte, int64_t count) {
    encode_part(bits, sign + byte, from_byte(nonzero, byte), count, fields + bits * byte);
  });
}

// kBytes fields of 2, 4 or 8 bits, from memory, as bytes.
template <int kBits>
HS_INLINE U8 read_fields(const uint8_t* p) {
  if constexpr (kBits == 8) {
    return load<U8>(p);
  } else if constexpr (kBits == 4) {
    const U16 pairs = __builtin_convertvector(load<HalfU8>(p), U16);
    return (U8)((pairs | pairs << 4) & 0x0f0f);
  } else {
    U32 fours = __builtin_convertvector(load<QuarterU8>(p), U32);
    fours = (fours | fours << 12) & 0x000f000f;
    return (U8)((fours | fours << 6) & 0x03030303);
  }
}

// Where 64 fields are below and above the number of voters.
template <int kBits>
struct Compared {
  uint64_t minus, plus;

  HS_INLINE Compared(const uint8_t* p, int voters) {
    if constexpr (kBits == 16) {
      Short::Block fields;
      load_block<Short>(p, fields);
      compare<Short>(fields, voters);
    } else {
      Byte::Block fields;
      HS_UNROLL
      for (int i = 0; i < Byte::kVectors; ++i) fields[i] = read_fields<kBits>(p + i * kBytes * kBits / 8);
      compare<Byte>(fields, voters);
    }
  }

 private:
  template <class E>
  HS_INLINE void compare(const typename E::Block& fields, int voters) {
    using Lane = typename E::Lane;
    const Lane limit = Lane{} + static_cast<typename E::Word>(voters);
    typename E::Block below, above;
    HS_UNROLL
    for (int i = 0; i < E::kVectors; ++i) {
      below[i] = (Lane)(fields[i] < limit);
      above[i] = (Lane)(fields[i] > limit);
    }
    minus = top_bits(below);
    plus = top_bits(above);
  }
};

struct DecodedPlanes {
  uint8_t* sign;
  uint8_t* nonzero;
  int64_t ties;

  HS_INLINE void put(int64_t w, uint64_t minus, uint64_t plus, uint64_t valid) {
    const uint64_t tie = ~(minus | plus) & valid;
    store(sign + 8 * w, minus & valid);
    if (nonzero) store(nonzero + 8 * w, ~tie);
    ties += __builtin_popcountll(tie);
  }
};

template <int kBits>
int64_t decode_fields(const uint8_t* fields, int64_t voters, int64_t n, uint8_t* out_sign, uint8_t* out_nonzero) {
  const int limit = static_cast<int>(voters);
  const int64_t words = n / kBlock;
  DecodedPlanes out{out_sign, out_nonzero, 0};
  for (int64_t w = 0; w < words; ++w, fields += 8 * kBits) {
    const Compared<kBits> block(fields, limit);
    out.put(w, block.minus, block.plus, ~uint64_t{0});
  }
  if (const int rest = static_cast<int>(n % kBlock)) {
    uint8_t padded[8 * kBits] = {};
    memcpy(padded, fields, (rest * kBits + 7) / 8);
    const Compared<kBits> block(padded, limit);
    out.put(words, block.minus, block.plus, low_bits(rest));
  }
  return out.ties;
}

int64_t decode_part(int bits, const uint8_t* fields, int64_t voters, int64_t n, uint8_t* out_sign,
                    uint8_t* out_nonzero) {
  switch (bits) {
    case 2:
      return decode_fields<2>(fields, voters, n, out_sign, out_nonzero);
    case 4:
      return decode_fields<4>(fields, voters, n, out_sign, out_nonzero);
    case 8:
      return decode_fields<8>(fields, voters, n, out_sign, out_nonzero);
    case 16:
      return decode_fields<16>(fields, voters, n, out_sign, out_nonzero);
  }
  return -1;
}

int64_t decode_counts(int threads, int bits, const uint8_t* fields, int64_t voters, int64_t n, uint8_t* out_sign,
                      uint8_t* out_nonzero) {
  int64_t ties = 0;
  for_words(threads, n, 8 * bits, [&](int64_t byte, int64_t count) {
    uint8_t* nonzero = out_nonzero ? out_nonzero + byte : nullptr;
    add_shared(&ties, decode_part(bits, fields + bits * byte, voters, count, out_sign + byte, nonzero));
  });
  return ties;
}
