// Which kernel sets this processor can run.
#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace {

constexpr int kMaxSets = 4;

#if defined(__x86_64__)
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1);
}

// The compiler's own checks include that the operating system saves the wider registers.
bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") && has_f16c(); }

bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

struct Supported {
  const HsKernels* sets[kMaxSets] = {};
  int count = 0;
  char names[64] = {};

  Supported() {
#if defined(__x86_64__)
    __builtin_cpu_init();
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
