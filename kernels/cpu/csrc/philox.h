// Random numbers that are a function of (seed, position), with no state. Philox2x64-10 of Salmon et al., "Parallel
// random numbers: as easy as 1, 2, 3" (SC 2011): a counter goes through ten rounds of multiplication keyed by the seed.
#pragma once

#include <cstdint>

namespace paged_backend {

struct PhiloxWords {
    uint64_t low;
    uint64_t high;
};

inline PhiloxWords philox(uint64_t key, PhiloxWords counter) {
    __extension__ typedef unsigned __int128 Product;
    for (int round = 0; round < 10; ++round) {
        const Product product = Product{counter.low} * 0xD2B74407B1CE6E93u;
        counter = {static_cast<uint64_t>(product >> 64) ^ key ^ counter.high, static_cast<uint64_t>(product)};
        key += 0x9E3779B97F4A7C15u;
    }
    return counter;
}

// In [0, 1), of 53 random bits.
inline double uniform(uint64_t seed, uint64_t position) {
    return static_cast<double>(philox(seed, {position, 0}).low >> 11) * 0x1p-53;
}

}  // namespace paged_backend
