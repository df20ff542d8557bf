// Which kernel sets this processor can run.
#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include <initializer_list>
#endif

namespace {

constexpr int kMaxSets = 4;

#if defined(__x86_64__)
struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf) {
  Registers r;
  __get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx);  // all 0 if the processor has no such leaf
  return r;
}

constexpr bool has(unsigned word, std::initializer_list<int> bits) {
  for (const int bit : bits) {
    if (!(word >> bit & 1)) return false;
  }
  return true;
}

// Whether the operating system saves these parts of the registers when it changes between threads (XCR0).
bool saved(unsigned parts) {
  if (!has(cpuid(1).ecx, {27})) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & parts) == parts;
}

// By hand: __builtin_cpu_supports asks a library of the compiler's, which with Zig's always says no.
// Bits of leaf 1: 23 popcnt, 28 AVX, 29 F16C; of leaf 7: 5 AVX2, 16 AVX-512 F, 17 DQ, 30 BW, 31 VL.
bool runs_avx2() { return has(cpuid(1).ecx, {23, 28, 29}) && has(cpuid(7).ebx, {5}) && saved(0x06); }

bool runs_avx512() { return runs_avx2() && has(cpuid(7).ebx, {16, 17, 30, 31}) && saved(0xe6); }
#endif

struct Supported {
  const HsKernels* sets[kMaxSets] = {};
  int count = 0;
  char names[64] = {};

  Supported() {
#if defined(__x86_64__)
    if (runs_avx512()) add(&hs_avx512);
    if (runs_avx2()) add(&hs_avx2);
#elif defined(__aarch64__)
    add(&hs_neon);
#endif
    add(&hs_scalar);
  }

  void add(const HsKernels* set) {
    if (count) strcat(names, " ");
    strcat(names, set->name);
    sets[count++] = set;
  }
};

const Supported supported;

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int hs_abi_version(void) { return HS_ABI_VERSION; }

__attribute__((visibility("default"))) const char* hs_supported(void) { return supported.names; }

__attribute__((visibility("default"))) const HsKernels* hs_kernels(const char* name) {
  for (int i = 0; i < supported.count; ++i)
    if (strcmp(name, supported.sets[i]->name) == 0) return supported.sets[i];
  return nullptr;
}
}
