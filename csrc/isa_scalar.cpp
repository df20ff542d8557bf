// Portable kernels: no intrinsics, only what every compiler target has.
#include "isa.h"

namespace {

constexpr int kBytes = 16;
HS_VECTORS

template <class V, int kVectors>
HS_INLINE uint64_t collect_top_bits(const V (&v)[kVectors]) {
  constexpr int kLanes = 64 / kVectors;
  constexpr int kTop = 8 * kBytes / kLanes - 1;
  uint64_t bits = 0;
  for (int i = 0; i < kVectors; ++i)
    for (int lane = 0; lane < kLanes; ++lane)
      bits |= static_cast<uint64_t>(v[i][lane] >> kTop & 1) << (i * kLanes + lane);
  return bits;
}

HS_INLINE uint64_t top_bits(const U8 (&v)[4]) { return collect_top_bits(v); }
HS_INLINE uint64_t top_bits(const U16 (&v)[8]) { return collect_top_bits(v); }
HS_INLINE uint64_t top_bits(const U32 (&v)[16]) { return collect_top_bits(v); }
HS_INLINE uint64_t top_bits(const U64 (&v)[32]) { return collect_top_bits(v); }

// float16 has 5 bits of exponent (bias 15) and 10 of fraction, float32 8 (bias 127) and 23.
HS_INLINE uint32_t half_to_single(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  uint32_t exponent = half >> 10 & 0x1f;
  uint32_t fraction = half & 0x3ff;
  if (exponent == 0x1f) return sign | 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0);
  if (exponent == 0) {
    if (fraction == 0) return sign;
    const int shift = __builtin_clz(fraction) - 21;  // Brings the leading one to bit 10.
    fraction = fraction << shift & 0x3ff;
    exponent = 1 - shift;
  }
  return sign | (exponent + 112) << 23 | fraction << 13;
}

// x / 2^shift, rounded to nearest even.
HS_INLINE uint32_t shift_rounding(uint32_t x, int shift) {
  const uint32_t half = 1u << (shift - 1);
  return (x + half - 1 + (x >> shift & 1)) >> shift;
}

HS_INLINE uint16_t single_to_half(uint32_t single) {
  const uint32_t sign = single >> 16 & 0x8000;
  const uint32_t magnitude = single & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  const int exponent = static_cast<int>(magnitude >> 23) - 112;
  if (exponent >= 31) return static_cast<uint16_t>(sign | 0x7c00);
  if (exponent < -10) return static_cast<uint16_t>(sign);
  // Rounding may carry into the exponent, which is then right, up to infinity.
  if (exponent > 0) return static_cast<uint16_t>(sign | shift_rounding(magnitude - (112u << 23), 13));
  const uint32_t fraction = (magnitude & 0x7fffff) | 0x800000;
  return static_cast<uint16_t>(sign | shift_rounding(fraction, 14 - exponent));
}

HS_INLINE F32 widen_half(const uint8_t* p) {
  uint16_t half[4];
  uint32_t single[4];
  memcpy(half, p, sizeof half);
  for (int i = 0; i < 4; ++i) single[i] = half_to_single(half[i]);
  F32 x;
  memcpy(&x, single, sizeof x);
  return x;
}

HS_INLINE void narrow_half(uint8_t* p, F32 x) {
  uint16_t half[4];
  uint32_t single[4];
  memcpy(single, &x, sizeof x);
  for (int i = 0; i < 4; ++i) half[i] = single_to_half(single[i]);
  memcpy(p, half, sizeof half);
}

#include "kernels.inc.h"

}  // namespace

extern const HsKernels hs_scalar = table("scalar");
