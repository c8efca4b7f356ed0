// What the CPU variants share: vectors of floats, 2^x and log2 of them, and jobs handed out to threads.
//
// All of it is compiled once for each kind of vectors that a machine may have (setup.py), and native.py takes what suits the machine.
// Vectors are a language extension of gcc and clang. They are as wide as the machine's: wider ones would be taken apart, and what
// compares them one number at a time. Each job writes its own outputs in its own order: the number of threads changes no bit of a
// result; other vectors change its last digits.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f, LOWEST = -1e30f;

INLINE int padded(int n) { return (n + LANES - 1) / LANES * LANES; }

INLINE Floats load(const float* from) {
    Floats v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store(float* to, Floats v) { std::memcpy(to, &v, sizeof v); }

INLINE Floats larger(Floats a, Floats b) { return a < b ? b : a; }  // a where it is not a number

INLINE Floats all(float v) { return v - Floats{}; }

// 2^x for x <= 127; below -125 it stays at 2^-125, which is nothing beside the 1 in every sum here. Relative error 2e-7.
INLINE Floats power2(Floats x) {
    const float magic = 12582912.f;  // 1.5 * 2^23: adding it leaves x rounded to a whole number in the low bits
    x = larger(x, all(-125.f));
    Floats shifted = x + magic, f = x - (shifted - magic);  // f in [-0.5, 0.5]
    Floats p = f * 1.327647198e-3f + 9.675541334e-3f;  // minimax polynomial of 2^f, relative error 7.5e-8
    p = p * f + 5.550713274e-2f;
    p = p * f + 2.402211972e-1f;
    p = p * f + 6.931469671e-1f;
    p = p * f + 1.f;
    Ints bits, whole;
    std::memcpy(&bits, &p, sizeof bits), std::memcpy(&whole, &shifted, sizeof whole);
    bits += whole << 23;  // the whole number joins the exponent; of magic's own bits none is left
    std::memcpy(&p, &bits, sizeof p);
    return p;
}

// log2 of positive normal numbers, absolute error 2e-7 for results of ordinary size.
INLINE Floats logarithm2(Floats x) {
    Ints bits;
    std::memcpy(&bits, &x, sizeof bits);
    Ints exponent = (bits - 0x3f3504f3) >> 23;  // so that the mantissa m lies in [sqrt(1/2), sqrt(2))
    bits -= exponent << 23;
    Floats m;
    std::memcpy(&m, &bits, sizeof m);
    Floats s = (m - 1.f) / (m + 1.f), z = s * s;  // log2 m = 2 log2(e) atanh(s), |s| <= 0.172
    Floats series = ((z * 0.3205989f + 0.4121986f) * z + 0.5770780f) * z + 0.9617967f;  // 2 log2(e) / (9, 7, 5, 3)
    return __builtin_convertvector(exponent, Floats) + s * (series * z + 2.8853901f);
}

// How many of `threads` are worth starting for so many exponentials: one costs about a nanosecond, a thread tens of microseconds.
INLINE int worth(double exponentials, int threads) { return std::min<double>(threads, 1 + exponentials / 2e5); }

// Hands jobs to at most `threads` threads; each makes its own work() and calls it with one job after the other.
template <class Make>
void spread(int jobs, int threads, Make make) {
    std::atomic<int> next{0};
    auto some = [&] {
        auto work = make();
        for (int job; (job = next.fetch_add(1)) < jobs;) work(job);
    };
    std::vector<std::thread> others;
    for (int i = 1; i < std::min(threads, jobs); i++) others.emplace_back(some);
    some();
    for (auto& thread : others) thread.join();
}
