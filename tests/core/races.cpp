// Every kernel that works on several threads, once, for ThreadSanitizer: see test_threads.py.
#include <vector>

#include "isa.h"

int main() {
  constexpr int kThreads = 4, kBallots = 3;
  constexpr int64_t kN = 1 << 23, kBytes = kN / 8;  // each kernel in two parts or more
  const HsKernels& kernels = hs_scalar;
  std::vector<float> x(kN, 1.0f), m(kN, 0.0f);
  for (int64_t i = 0; i < kN; i += 1000) x[i] = 0.0f;
  std::vector<uint8_t> sign(kBytes), nonzero(kBytes), other(kBytes), fields(kN / 2);
  std::vector<int8_t> votes(kN);
  const int64_t n = kN, off = 0;
  const void* read = x.data();
  void* write = x.data();
  void* state = m.data();
  int64_t counts[2];
  const float coefficients[4] = {0.9f, 0.1f, 0.9f, 0.1f};
  const double rate = 0.1, decay = 0.1;
  kernels.pack(kThreads, HS_FLOAT32, HS_ABSTAIN, 1, &read, &n, &off, sign.data(), nonzero.data(), counts);
  const int64_t zeros = counts[0];
  kernels.interpolate_pack(kThreads, HS_FLOAT32, HS_ABSTAIN, 1, &read, &state, &n, &off, coefficients, 0, sign.data(),
                           nonzero.data(), counts);
  const uint8_t* signs[kBallots] = {sign.data(), sign.data(), sign.data()};
  const uint8_t* nonzeros[kBallots] = {nonzero.data(), nonzero.data(), nonzero.data()};
  const int64_t ties = kernels.tally(kThreads, kBallots, signs, nonzeros, kBytes, other.data(), nullptr);
  kernels.encode_counts(kThreads, 4, sign.data(), nonzero.data(), kN, fields.data());
  const int64_t decoded = kernels.decode_counts(kThreads, 4, fields.data(), 1, kN, other.data(), nullptr);
  const int64_t alike =
      kernels.agreement(kThreads, sign.data(), nonzero.data(), sign.data(), nonzero.data(), kN);
  kernels.unpack_int8(kThreads, sign.data(), nonzero.data(), kN, votes.data());
  kernels.apply(kThreads, HS_FLOAT32, 1, &write, &n, &off, sign.data(), nonzero.data(), &rate, &decay);
  kernels.unpack(kThreads, HS_FLOAT32, 1, &write, &n, &off, sign.data(), nonzero.data());
  const int64_t idle = (kN + 999) / 1000;
  return !(zeros == idle && counts[0] == idle && ties == idle && decoded == idle && alike == kN - idle);
}
