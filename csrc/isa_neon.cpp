// Kernels for 64-bit ARM, where NEON is always there.
#if defined(__aarch64__)

#include <arm_neon.h>

#include "isa.h"

namespace {

constexpr int kBytes = 16;
HS_VECTORS

// The top bits of 16 bytes: each becomes its place's weight in its half, and a half's weights are added up.
HS_INLINE uint64_t mask8(uint8x16_t v) {
  const uint8x16_t weights = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t bits = vandq_u8(vreinterpretq_u8_s8(vshrq_n_s8(vreinterpretq_s8_u8(v), 7)), weights);
  return vaddv_u8(vget_low_u8(bits)) | static_cast<uint64_t>(vaddv_u8(vget_high_u8(bits))) << 8;
}

// Odd elements are the upper halves (memory order is little endian), which have the top bits.
HS_INLINE uint8x16_t upper8(uint16x8_t a, uint16x8_t b) {
  return vuzp2q_u8(vreinterpretq_u8_u16(a), vreinterpretq_u8_u16(b));
}

HS_INLINE uint16x8_t upper16(uint32x4_t a, uint32x4_t b) {
  return vuzp2q_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b));
}

HS_INLINE uint32x4_t upper32(uint64x2_t a, uint64x2_t b) {
  return vuzp2q_u32(vreinterpretq_u32_u64(a), vreinterpretq_u32_u64(b));
}

HS_INLINE uint64_t top_bits(const U8 (&v)[4]) {
  uint64_t bits = 0;
  HS_UNROLL
  for (int i = 0; i < 4; ++i) bits |= mask8((uint8x16_t)v[i]) << (16 * i);
  return bits;
}

HS_INLINE uint64_t top_bits(const U16 (&v)[8]) {
  U8 narrow[4];
  HS_UNROLL
  for (int i = 0; i < 4; ++i) narrow[i] = (U8)upper8((uint16x8_t)v[2 * i], (uint16x8_t)v[2 * i + 1]);
  return top_bits(narrow);
}

HS_INLINE uint64_t top_bits(const U32 (&v)[16]) {
  U16 narrow[8];
  HS_UNROLL
  for (int i = 0; i < 8; ++i) narrow[i] = (U16)upper16((uint32x4_t)v[2 * i], (uint32x4_t)v[2 * i + 1]);
  return top_bits(narrow);
}

HS_INLINE uint64_t top_bits(const U64 (&v)[32]) {
  U32 narrow[16];
  HS_UNROLL
  for (int i = 0; i < 16; ++i) narrow[i] = (U32)upper32((uint64x2_t)v[2 * i], (uint64x2_t)v[2 * i + 1]);
  return top_bits(narrow);
}

HS_INLINE F32 widen_half(const uint8_t* p) {
  float16x4_t half;
  memcpy(&half, p, sizeof half);
  return (F32)vcvt_f32_f16(half);
}

HS_INLINE void narrow_half(uint8_t* p, F32 x) {
  const float16x4_t half = vcvt_f16_f32((float32x4_t)x);
  memcpy(p, &half, sizeof half);
}

#include "kernels.inc.h"

}  // namespace

extern const HsKernels hs_neon = table("neon");

#endif  // __aarch64__
