// Votes as small integer fields, for transports that can only add: a ballot's field is sign + 1, so that after the sum
// over V ballots a coordinate's majority is the comparison of its field with V.

// Bit i to bit 2 i.
HS_INLINE uint64_t spread2(uint32_t bits) {
  uint64_t x = bits;
  x = (x | x << 16) & 0x0000ffff0000ffff;
  x = (x | x << 8) & 0x00ff00ff00ff00ff;
  x = (x | x << 4) & 0x0f0f0f0f0f0f0f0f;
  x = (x | x << 2) & 0x3333333333333333;
  return (x | x << 1) & 0x5555555555555555;
}

// Bit i to bit 4 i.
HS_INLINE uint64_t spread4(uint16_t bits) { return spread2(static_cast<uint32_t>(spread2(bits))); }

// Byte i to byte 2 i.
HS_INLINE uint64_t spread_bytes(uint32_t bytes) {
  const uint64_t x = (bytes | uint64_t{bytes} << 16) & 0x0000ffff0000ffff;
  return (x | x << 8) & 0x00ff00ff00ff00ff;
}

// The fields of 64 coordinates: kBits words of 64 bits. `plus` and `idle` have ones where the field is 2 and 1.
template <int kBits>
HS_INLINE void encode_block(uint64_t plus, uint64_t idle, uint8_t* fields) {
  if constexpr (kBits == 2) {
    for (int i = 0; i < 2; ++i, plus >>= 32, idle >>= 32)
      store(fields + 8 * i,
            spread2(static_cast<uint32_t>(plus)) << 1 | spread2(static_cast<uint32_t>(idle)));
  } else if constexpr (kBits == 4) {
    for (int i = 0; i < 4; ++i, plus >>= 16, idle >>= 16)
      store(fields + 8 * i,
            spread4(static_cast<uint16_t>(plus)) << 1 | spread4(static_cast<uint16_t>(idle)));
  } else {
    for (int i = 0; i < 8; ++i, plus >>= 8, idle >>= 8) {
      const uint64_t bytes = (bits_to_bytes(plus & 0xff) & 0x0202020202020202) |
                             (bits_to_bytes(idle & 0xff) & 0x0101010101010101);
      if constexpr (kBits == 8) {
        store(fields + 8 * i, bytes);
      } else {
        store(fields + 16 * i, spread_bytes(static_cast<uint32_t>(bytes)));
        store(fields + 16 * i + 8, spread_bytes(static_cast<uint32_t>(bytes >> 32)));
      }
    }
  }
}

template <int kBits>
void encode_fields(const uint8_t* sign, const uint8_t* nonzero, int64_t n, uint8_t* fields) {
  const int64_t words = n / kBlock;
  for (int64_t w = 0; w < words; ++w, fields += 8 * kBits) {
    const uint64_t votes = word_at(nonzero, w, 8);
    encode_block<kBits>(votes & ~word_at(sign, w, 8), ~votes, fields);
  }
  if (const int rest = static_cast<int>(n % kBlock)) {
    const int bytes = (rest + 7) / 8;
    const uint64_t votes = word_at(nonzero, words, bytes), valid = low_bits(rest);
    uint8_t padded[8 * kBits];
    encode_block<kBits>(votes & ~word_at(sign, words, bytes) & valid, ~votes & valid, padded);
    memcpy(fields, padded, (rest * kBits + 7) / 8);
  }
}

void encode_counts(int bits, const uint8_t* sign, const uint8_t* nonzero, int64_t n, uint8_t* fields) {
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

// Where 64 integers (T's lanes hold them) are below and above the number of voters.
template <class T>
struct Compared {
  uint64_t minus, plus;

  HS_INLINE Compared(const uint8_t* p, int shift, typename T::Word mask, typename T::Word voters) {
    using Lane = typename T::Lane;
    typename T::Block below, above;
    const Lane limit = Lane{} + voters;
    HS_UNROLL
    for (int i = 0; i < T::kVectors; ++i) {
      const Lane x = (load<Lane>(p + i * kBytes) >> shift) & mask;
      below[i] = (Lane)(x < limit);
      above[i] = (Lane)(x > limit);
    }
    minus = top_bits(below);
    plus = top_bits(above);
  }
};

using Byte = Element<U8, uint8_t, 0>;
using Short = Element<U16, uint16_t, 0>;

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

// The planes' words that 64 bytes of fields (128 for fields of 16 bits) hold.
template <int kBits>
struct FieldBlock {
  static constexpr int kWords = kBits >= 8 ? 1 : 8 / kBits;
  static constexpr int kSize = 8 * kBits * kWords;
  uint64_t minus[kWords], plus[kWords];

  HS_INLINE FieldBlock(const uint8_t* p, int voters) {
    if constexpr (kBits == 16) {
      const Compared<Short> all(p, 0, 0xffff, static_cast<uint16_t>(voters));
      minus[0] = all.minus;
      plus[0] = all.plus;
    } else if constexpr (kBits == 8) {
      const Compared<Byte> all(p, 0, 0xff, static_cast<uint8_t>(voters));
      minus[0] = all.minus;
      plus[0] = all.plus;
    } else {
      interleave(p, static_cast<uint8_t>(voters));
    }
  }

  // Fields that share a byte: one comparison for each place in the byte, then the places' bits are interleaved.
  HS_INLINE void interleave(const uint8_t* p, uint8_t voters) {
    constexpr int kPer = 64 / kWords;  // Bytes that fill one word.
    for (int w = 0; w < kWords; ++w) minus[w] = plus[w] = 0;
    for (int place = 0; place < kWords; ++place) {
      const Compared<Byte> some(p, place * kBits, (1 << kBits) - 1, voters);
      for (int w = 0; w < kWords; ++w) {
        minus[w] |= spread(some.minus >> (w * kPer)) << place;
        plus[w] |= spread(some.plus >> (w * kPer)) << place;
      }
    }
  }

  static HS_INLINE uint64_t spread(uint64_t bits) {
    return kWords == 2 ? spread2(static_cast<uint32_t>(bits)) : spread4(static_cast<uint16_t>(bits));
  }
};

template <int kBits>
int64_t decode_fields(const uint8_t* fields, int64_t voters, int64_t n, uint8_t* out_sign, uint8_t* out_nonzero) {
  using Fields = FieldBlock<kBits>;
  constexpr int64_t kCoordinates = kBlock * Fields::kWords;
  const int limit = static_cast<int>(voters);
  DecodedPlanes out{out_sign, out_nonzero, 0};
  int64_t w = 0;
  for (; n >= kCoordinates; n -= kCoordinates, fields += Fields::kSize) {
    const Fields block(fields, limit);
    for (int i = 0; i < Fields::kWords; ++i, ++w) out.put(w, block.minus[i], block.plus[i], ~uint64_t{0});
  }
  if (n == 0) return out.ties;
  uint8_t padded[Fields::kSize] = {};
  memcpy(padded, fields, (n * kBits + 7) / 8);
  const Fields block(padded, limit);
  for (int i = 0; n > 0; ++i, ++w, n -= kBlock)
    out.put(w, block.minus[i], block.plus[i], n < kBlock ? low_bits(n) : ~uint64_t{0});
  return out.ties;
}

int64_t decode_counts(int bits, const uint8_t* fields, int64_t voters, int64_t n, uint8_t* out_sign,
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
