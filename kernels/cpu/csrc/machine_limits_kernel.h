// Loops that do nothing but one kind of work, as fast as the instruction set can.
#pragma once

#include "machine_limits.h"
#include "simd.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace paged_backend {
namespace {

constexpr int num_chains = 12;  // of independent instructions, more than any latency needs

inline int64_t kept(Ints value) {
    int64_t sum = 0;
    for (int64_t lane = 0; lane < lanes; ++lane) sum += value[lane] & 1;
    return sum;
}

// The register's content is unknown to the compiler from here on.
#if defined(__x86_64__)
#define PAGED_BACKEND_HIDE(value) asm volatile("" : "+v"(value))
#elif defined(__aarch64__)
#define PAGED_BACKEND_HIDE(value) asm volatile("" : "+w"(value))
#else
#define PAGED_BACKEND_HIDE(value) asm volatile("" : "+m"(value))
#endif

template <class Vector, class Step>
inline int64_t run_chains(int64_t count, const Step& step) {
    Vector chains[num_chains];
#pragma GCC unroll 12
    for (int chain = 0; chain < num_chains; ++chain) {
        chains[chain] = Vector{};
        PAGED_BACKEND_HIDE(chains[chain]);  // or all chains would be one
    }
    Vector a = {}, b = {};
    for (int64_t round = 0; round < count; ++round) {
        PAGED_BACKEND_HIDE(a);
        PAGED_BACKEND_HIDE(b);
#pragma GCC unroll 12
        for (int chain = 0; chain < num_chains; ++chain) chains[chain] = step(chains[chain], a, b);
    }
    int64_t sum = 0;
#pragma GCC unroll 12
    for (int chain = 0; chain < num_chains; ++chain) {
        PAGED_BACKEND_HIDE(chains[chain]);
        sum += static_cast<int64_t>(chains[chain][0]);
    }
    return sum & 1;
}

inline int64_t count_float_products(int64_t count) {
    return run_chains<Floats>(count, [](Floats sum, Floats a, Floats b) { return sum + a * b; }) +
           count * num_chains * lanes * 2;
}

inline int64_t read_bytes(const char* from, int64_t num_bytes) {
    Ints sums[4] = {};
    for (int64_t i = 0; i + 16 * lanes <= num_bytes; i += 16 * lanes) {
#pragma GCC unroll 4
        for (int64_t part = 0; part < 4; ++part) {
            Ints value;
            std::memcpy(&value, from + i + 4 * part * lanes, sizeof value);
            sums[part] ^= value;
        }
    }
    return kept(sums[0] ^ sums[1] ^ sums[2] ^ sums[3]);
}

#if defined(__AVX2__)
inline int64_t count_int16_products(int64_t count) {
    return run_chains<Ints>(count,
                            [](Ints sum, Ints a, Ints b) {
#if defined(__AVX512VNNI__)
                                return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
               PAGED_BACKEND_HIDE(a);  // each product anew
               return sum + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#else
               PAGED_BACKEND_HIDE(a);
               return sum + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
                            }) +
           count * num_chains * lanes * 4;
}
#endif

#if defined(__AVX512VNNI__)
inline int64_t count_int8_products(int64_t count) {
    return run_chains<Ints>(count,
                            [](Ints sum, Ints a, Ints b) {
                                return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
                            }) +
           count * num_chains * lanes * 8;
}
#endif

#undef PAGED_BACKEND_HIDE

inline LimitKernels limit_kernels() {
    LimitKernels kernels = {};
    kernels.float_products = count_float_products;
    kernels.read = read_bytes;
#if defined(__AVX2__)
    kernels.int16_products = count_int16_products;
#endif
#if defined(__AVX512VNNI__)
    kernels.int8_products = count_int8_products;
#endif
    return kernels;
}

}  // namespace
}  // namespace paged_backend
