// The kernels' C interface: everything that Python (through ctypes) sees of the C++ code.
//
// A kernel set is a table of functions that all do the same thing, bit for bit, for one instruction set.
//
// Bit planes. Coordinate i of a plane is bit i % 8 of byte i / 8. A *sign* plane says "minus" with a 1, a *nonzero*
// plane says "votes" with a 1 and "abstains" with a 0. Where the nonzero bit is 0, readers ignore the sign bit. A NULL
// nonzero plane stands for one of all ones.
//
// Segments. Functions that take `k` segments read k tensors of n[i] contiguous coordinates at the addresses x[i], of
// any alignment; segment i owns the ceil(n[i] / 64) words of 64 bits that start off[i] bytes into a plane (off[i] is a
// multiple of 8). Bits after the n[i]-th of its last word are padding: sign 0, nonzero 1.
//
// Threads. Functions that take `threads` cut large work into as many parts, for the calling thread and for threads that
// the library keeps (asleep between calls). The results do not depend on it. If another call has those threads, or they
// cannot be made, the caller does all parts.
//
// No function allocates, fails or throws: arguments are checked by the caller. Signs, zeros and NaNs are told apart by
// integer operations on the bits, so the results do not depend on the thread's floating-point modes (flush to zero,
// denormals are zero). Floating-point arithmetic rounds each operation by itself: no fused multiply-add.
#ifndef HOROVOD_SIGN_KERNELS_H_
#define HOROVOD_SIGN_KERNELS_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Raised by one whenever a function below changes; native.py refuses a library of another number.
#define HS_ABI_VERSION 2

enum HsDtype { HS_FLOAT16 = 0, HS_BFLOAT16 = 1, HS_FLOAT32 = 2, HS_FLOAT64 = 3 };

enum HsMode {
  HS_SIGNBIT = 0,  // sign = IEEE sign bit; no nonzero plane.
  HS_ABSTAIN = 1,  // sign = IEEE sign bit; nonzero = x is neither +-0 nor NaN.
  HS_ONEBIT = 2,   // sign = x < 0 (zeros and NaNs count as plus); no nonzero plane.
};

typedef struct HsKernels {
  const char* name;

  // Sign planes of k tensors. `nonzero` and `counts` are used in HS_ABSTAIN only: counts = {zeros, NaNs}.
  void (*pack)(int threads, int dtype, int mode, int64_t k, const void* const* x, const int64_t* n, const int64_t* off,
               uint8_t* sign, uint8_t* nonzero, int64_t* counts);

  // With g widened or narrowed to float32, and m a float32 state that is updated in place:
  //   finite g:      v = beta_vote m + (1 - beta_vote) g;   m <- beta_state m + (1 - beta_state) g
  //   infinite, NaN: v = g;                                 m unchanged
  // then packs v, or g itself (with g's own bits) when warm is not 0.
  // coefficients = {beta_vote, 1 - beta_vote, beta_state, 1 - beta_state}.
  void (*interpolate_pack)(int threads, int dtype, int mode, int64_t k, const void* const* g, void* const* m,
                           const int64_t* n, const int64_t* off, const float* coefficients, int warm,
                           uint8_t* sign, uint8_t* nonzero, int64_t* counts);

  // Majority of m ballots (1 <= m < 2^30) over nbytes bytes of plane, any number, at any alignment. With P and N the
  // numbers of voters for plus and for minus: sign = N > P, nonzero = N != P. nonzero[i] may be NULL, and so may
  // out_nonzero. Returns the number of coordinates where N == P. Outputs may not overlap inputs, except that an output
  // may be exactly one of the input planes.
  int64_t (*tally)(int threads, int64_t m, const uint8_t* const* sign, const uint8_t* const* nonzero, int64_t nbytes,
                   uint8_t* out_sign, uint8_t* out_nonzero);

  // Votes as numbers: -1, 0 or +1.
  void (*unpack_int8)(int threads, const uint8_t* sign, const uint8_t* nonzero, int64_t n, int8_t* out);
  void (*unpack)(int threads, int dtype, int64_t k, void* const* out, const int64_t* n, const int64_t* off,
                 const uint8_t* sign, const uint8_t* nonzero);

  // x <- x - lr (vote + weight_decay x), in float64 for float64 tensors and in float32 for all others (then rounded
  // once to the tensor's type). lr and weight_decay are per segment; where weight_decay is 0 its term is left out.
  void (*apply)(int threads, int dtype, int64_t k, void* const* x, const int64_t* n, const int64_t* off,
                const uint8_t* sign, const uint8_t* nonzero, const double* lr, const double* weight_decay);

  // Votes as little-endian fields of `bits` = 2, 4, 8 or 16 bits that can be added as integers: minus is 0, abstains is
  // 1, plus is 2. Writes ceil(n bits / 8) bytes; unused bits of the last one are 0.
  void (*encode_counts)(int threads, int bits, const uint8_t* sign, const uint8_t* nonzero, int64_t n, uint8_t* fields);

  // The majority from the sum of `voters` encoded ballots: above `voters` is plus, below is minus. Writes whole words,
  // with padding. With one_bit, or out_nonzero NULL, ties are plus. Returns the number of ties.
  int64_t (*decode_counts)(int threads, int bits, const uint8_t* fields, int64_t voters, int64_t n, uint8_t* out_sign,
                           uint8_t* out_nonzero);

  // 1 if each of the nbytes bytes is 0xff.
  int (*all_ones)(const uint8_t* plane, int64_t nbytes);

  // The number of the first n coordinates where both ballots vote, and vote alike.
  int64_t (*agreement)(int threads, const uint8_t* sign_a, const uint8_t* nonzero_a, const uint8_t* sign_b,
                       const uint8_t* nonzero_b, int64_t n);

  // Limits for benchmarks: reads nbytes bytes (returns a checksum); reads them, inverts them and writes them back.
  uint64_t (*read_loop)(const uint8_t* data, int64_t nbytes);
  void (*read_write_loop)(uint8_t* data, int64_t nbytes);
} HsKernels;

int hs_abi_version(void);

// The names of the sets that this processor runs, best first, separated by spaces.
const char* hs_supported(void);

// The set of that name, or NULL if there is none or the processor cannot run it.
const HsKernels* hs_kernels(const char* name);

#ifdef __cplusplus
}
#endif

#endif  // HOROVOD_SIGN_KERNELS_H_
