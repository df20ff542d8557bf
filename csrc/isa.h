// What every instruction set's file needs before kernels.inc.h: the C headers, macros, and the tables' declarations.
#ifndef HOROVOD_SIGN_ISA_H_
#define HOROVOD_SIGN_ISA_H_

#include <stdint.h>
#include <string.h>

#include "kernels.h"
#include "threads.h"

#define HS_INLINE inline __attribute__((always_inline))
#define HS_LIKELY(condition) __builtin_expect(!!(condition), 1)
#define HS_LAMBDA __attribute__((always_inline))

// Loops over the vectors of a block must be unrolled whole, or the block's vectors live in memory.
#if defined(__clang__)
#define HS_UNROLL _Pragma("clang loop unroll(full)")
#else
#define HS_UNROLL _Pragma("GCC unroll 64")
#endif

// GCC's and Clang's vector types of kBytes bytes; operators work lane by lane.
#define HS_VECTORS                                             \
  typedef uint8_t U8 __attribute__((vector_size(kBytes)));     \
  typedef uint16_t U16 __attribute__((vector_size(kBytes)));   \
  typedef uint32_t U32 __attribute__((vector_size(kBytes)));   \
  typedef uint64_t U64 __attribute__((vector_size(kBytes)));   \
  typedef int32_t I32 __attribute__((vector_size(kBytes)));    \
  typedef float F32 __attribute__((vector_size(kBytes)));      \
  typedef double F64 __attribute__((vector_size(kBytes)));

// The sets that this build has; dispatch.cpp decides which of them the processor can run.
extern const HsKernels hs_scalar;
#if defined(__x86_64__)
extern const HsKernels hs_avx2;
extern const HsKernels hs_avx512;
#elif defined(__aarch64__)
extern const HsKernels hs_neon;
#endif

#endif  // HOROVOD_SIGN_ISA_H_
