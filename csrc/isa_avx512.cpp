// Kernels for x86-64 with AVX-512 F, BW, DQ and VL. Compiled for them (setup.py), and called only where dispatch.cpp
// finds them.
#if defined(__x86_64__)

#include <immintrin.h>

#include "isa.h"

namespace {

constexpr int kBytes = 64;
HS_VECTORS

HS_INLINE uint64_t top_bits(const U8 (&v)[1]) { return _mm512_movepi8_mask((__m512i)v[0]); }

HS_INLINE uint64_t top_bits(const U16 (&v)[2]) {
  uint64_t bits = 0;
  HS_UNROLL
  for (int i = 0; i < 2; ++i) bits |= static_cast<uint64_t>(_mm512_movepi16_mask((__m512i)v[i])) << (32 * i);
  return bits;
}

HS_INLINE uint64_t top_bits(const U32 (&v)[4]) {
  uint64_t bits = 0;
  HS_UNROLL
  for (int i = 0; i < 4; ++i) bits |= static_cast<uint64_t>(_mm512_movepi32_mask((__m512i)v[i])) << (16 * i);
  return bits;
}

HS_INLINE uint64_t top_bits(const U64 (&v)[8]) {
  uint64_t bits = 0;
  HS_UNROLL
  for (int i = 0; i < 8; ++i) bits |= static_cast<uint64_t>(_mm512_movepi64_mask((__m512i)v[i])) << (8 * i);
  return bits;
}

HS_INLINE F32 widen_half(const uint8_t* p) {
  return (F32)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

HS_INLINE void narrow_half(uint8_t* p, F32 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
}

#include "kernels.inc.h"

}  // namespace

extern const HsKernels hs_avx512 = table("avx512");

#endif  // __x86_64__
