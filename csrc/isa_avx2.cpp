// Kernels for x86-64 with AVX2 and F16C. Compiled for them (setup.py), and called only where dispatch.cpp finds them.
#if defined(__x86_64__)

#include <immintrin.h>

#include "isa.h"

namespace {

constexpr int kBytes = 32;
HS_VECTORS

HS_INLINE uint64_t word(int low, int high) {
  return static_cast<uint32_t>(low) | static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32;
}

HS_INLINE int mask8(__m256i v) { return _mm256_movemask_epi8(v); }

// Packing with signed saturation keeps each lane's top bit. It works within 128-bit halves, so the lanes come out in an
// order that one permutation puts right.
HS_INLINE int mask16(__m256i a, __m256i b) {
  return mask8(_mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xd8));
}

HS_INLINE int mask32(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
  return mask8(_mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

HS_INLINE uint64_t mask64(__m256i v) {
  return static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(v))));
}

HS_INLINE uint64_t top_bits(const U8 (&v)[2]) { return word(mask8((__m256i)v[0]), mask8((__m256i)v[1])); }

HS_INLINE uint64_t top_bits(const U16 (&v)[4]) {
  return word(mask16((__m256i)v[0], (__m256i)v[1]), mask16((__m256i)v[2], (__m256i)v[3]));
}

HS_INLINE uint64_t top_bits(const U32 (&v)[8]) {
  return word(mask32((__m256i)v[0], (__m256i)v[1], (__m256i)v[2], (__m256i)v[3]),
              mask32((__m256i)v[4], (__m256i)v[5], (__m256i)v[6], (__m256i)v[7]));
}

HS_INLINE uint64_t top_bits(const U64 (&v)[16]) {
  uint64_t bits = 0;
  HS_UNROLL
  for (int i = 0; i < 16; ++i) bits |= mask64((__m256i)v[i]) << (4 * i);
  return bits;
}

HS_INLINE F32 widen_half(const uint8_t* p) {
  return (F32)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

HS_INLINE void narrow_half(uint8_t* p, F32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}

#include "kernels.inc.h"

}  // namespace

extern const HsKernels hs_avx2 = table("avx2");

#endif  // __x86_64__
