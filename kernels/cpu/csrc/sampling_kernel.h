// The passes of sampling over one row of logits, written once in vectors of PAGED_BACKEND_LANES floats.
//
// Blocks, columns and the order of sums are the same for every instruction set. Weights and the sum of a block are
// float32, all other sums float64.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "sampling.h"
#include "simd.h"

namespace paged_backend {
namespace {
namespace sampling_passes {

static_assert(sampling_columns % lanes == 0, "a row of a block is a whole number of vectors");

typedef float Floats4 __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(PAGED_BACKEND_LANES * 4)));

constexpr int64_t sampling_rows = sampling_block / sampling_columns;
constexpr float minus_infinity = -__builtin_inff();

// A bit for each lane whose mask is set.
inline uint32_t mask_bits(Ints mask) {
#if defined(__AVX512DQ__) && PAGED_BACKEND_LANES == 16
    return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__) && PAGED_BACKEND_LANES == 8
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#else
    uint32_t bits = 0;
    for (int64_t lane = 0; lane < lanes; ++lane) bits |= (static_cast<uint32_t>(mask[lane]) & 1u) << lane;
    return bits;
#endif
}

inline bool any_at_least(const float* columns, float low) {
    Ints mask = {};
    for (int64_t i = 0; i < sampling_columns; i += lanes) mask |= load(columns + i) >= low;
    return mask_bits(mask) != 0;
}

// Calls use(logits, block, first_token) for each block; the last is filled up with -inf.
template <class Use>
inline void for_each_block(const float* logits, int64_t n, int64_t begin, int64_t end, const Use& use) {
    for (int64_t block = begin; block < end; ++block) {
        const float* from = logits + block * sampling_block;
        const int64_t left = n - block * sampling_block;
        if (left >= sampling_block) {
            use(from, block);
        } else {
            float padded[sampling_block];
            for (int64_t i = 0; i < sampling_block; ++i) padded[i] = i < left ? from[i] : minus_infinity;
            use(padded, block);
        }
    }
}

// The same, for the blocks that have a logit of at least `low`.
template <class Use>
inline void for_blocks_from(const float* logits, int64_t n, const ColumnMaxima& maxima, float low, const Use& use) {
    const int64_t num_blocks = sampling_blocks(n);
    for (int64_t first = 0; first < num_blocks; first += sampling_rows) {
        if (!any_at_least(maxima.coarse + first, low)) continue;  // 16 columns for 16 blocks
        const int64_t end = first + sampling_rows < num_blocks ? first + sampling_rows : num_blocks;
        for (int64_t block = first; block < end; ++block) {
            if (any_at_least(maxima.fine + block * sampling_columns, low)) {
                for_each_block(logits, n, block, block + 1, use);
            }
        }
    }
}

template <bool keep>
inline Peak largest_logit(const float* logits, int64_t n, const ColumnMaxima* maxima) {
    constexpr int64_t width = sampling_columns / lanes;
    const int64_t num_blocks = sampling_blocks(n);
    Floats top[width], coarse[width];
    Ints where[width], no_number[width];  // the block in which a lane's largest was found first
    for (int64_t i = 0; i < width; ++i) {
        top[i] = coarse[i] = broadcast(minus_infinity);
        where[i] = no_number[i] = Ints{};
    }
    for_each_block(logits, n, 0, num_blocks, [&](const float* from, int64_t block) {
        for (int64_t i = 0; i < width; ++i) {
            Floats most[4];
            for (int64_t row = 0; row < sampling_rows; row += 4) {
                for (int64_t j = 0; j < 4; ++j) {
                    const Floats x = load(from + (row + j) * sampling_columns + i * lanes);
                    no_number[i] |= x != x;
                    most[j] = row == 0 ? x : larger(most[j], x);
                }
            }
            const Floats found = larger(larger(most[0], most[1]), larger(most[2], most[3]));
            const Ints is_new = found > top[i];
            where[i] = (is_new & static_cast<int32_t>(block)) | (~is_new & where[i]);
            top[i] = select(is_new, found, top[i]);
            if (keep) {
                coarse[i] = larger(coarse[i], found);
                store(found, maxima->fine + block * sampling_columns + i * lanes);
                if ((block + 1) % sampling_rows == 0 || block + 1 == num_blocks) {
                    store(coarse[i], maxima->coarse + block / sampling_rows * sampling_columns + i * lanes);
                    coarse[i] = broadcast(minus_infinity);
                }
            }
        }
    });
    Peak peak = {minus_infinity, 0, true};
    for (int64_t i = 0; i < width; ++i) {
        const float most = largest_lane(top[i]);
        peak.logit = most > peak.logit ? most : peak.logit;
        peak.are_numbers &= mask_bits(no_number[i]) == 0;
    }
    peak.are_numbers &= peak.logit > minus_infinity && peak.logit < -minus_infinity;
    if (!peak.are_numbers) return peak;
    int64_t first = num_blocks;
    for (int64_t i = 0; i < width; ++i) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
            if (top[i][lane] == peak.logit && where[i][lane] < first) first = where[i][lane];
        }
    }
    peak.token = first * sampling_block;
    while (logits[peak.token] != peak.logit) ++peak.token;
    return peak;
}

Peak largest(const float* logits, int64_t n, const ColumnMaxima* maxima) {
    return maxima ? largest_logit<true>(logits, n, maxima) : largest_logit<false>(logits, n, nullptr);
}

// 2^y for the exponent y = (x - peak) * scale, above -126 where x >= lowest. The polynomial is that of Cephes' exp2f,
// 2e-8 from the truth; y's rounding adds |y| * 4e-8 to it.
inline Floats weight_of(Floats x, const Softmax& softmax) {
    const Floats magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const Floats below = x - softmax.peak;
    const Floats shifted = below * softmax.scale + magic;
    const Floats whole = shifted - magic;
    const Floats r = (below * softmax.scale - whole) + below * softmax.scale_rest;
    Floats p = broadcast(1.535336188319500e-4f);
    p = p * r + 1.339887440266574e-3f;
    p = p * r + 9.618437357674640e-3f;
    p = p * r + 5.550332471162809e-2f;
    p = p * r + 2.402264791363012e-1f;
    p = p * r + 6.931472028550421e-1f;
    p = p * r + 1.0f;
    Words exponent;  // unsigned: where x is below `lowest` it is anything
    std::memcpy(&exponent, &shifted, sizeof exponent);
    exponent = (exponent << 23) + (127u << 23);
    Floats power;
    std::memcpy(&power, &exponent, sizeof power);
    return select(x >= softmax.lowest, p * power, Floats{});
}

// Of a row of a block: columns i and i + 8 first, then i and i + 4, and so on.
inline float sum_columns(const Floats* row) {
    float columns[sampling_columns];
    std::memcpy(columns, row, sizeof columns);
    const Floats8 eight = load_eight(columns) + load_eight(columns + 8);
    Floats4 halves[2];
    std::memcpy(halves, &eight, sizeof halves);
    const Floats4 four = halves[0] + halves[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

void block_sums(const float* logits, int64_t n, const ColumnMaxima& maxima, const Softmax& softmax, double* sums) {
    constexpr int64_t width = sampling_columns / lanes;
    for (int64_t block = 0; block < sampling_blocks(n); ++block) sums[block] = 0.0;
    for_blocks_from(logits, n, maxima, softmax.lowest, [&](const float* from, int64_t block) {
        Floats columns[width];
        for (int64_t i = 0; i < width; ++i) {
            Floats four[4];
            for (int64_t j = 0; j < 4; ++j) {
                Floats w[4];
                for (int64_t k = 0; k < 4; ++k) {
                    w[k] = weight_of(load(from + (4 * j + k) * sampling_columns + i * lanes), softmax);
                }
                four[j] = (w[0] + w[1]) + (w[2] + w[3]);
            }
            columns[i] = (four[0] + four[1]) + (four[2] + four[3]);
        }
        sums[block] = static_cast<double>(sum_columns(columns));
    });
}

void weights(const float* logits, int64_t count, const Softmax& softmax, float* out) {
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) store(weight_of(load(logits + i), softmax), out + i);
    if (i == count) return;
    Floats rest = broadcast(minus_infinity);
    std::memcpy(&rest, logits + i, static_cast<size_t>(count - i) * sizeof(float));
    rest = weight_of(rest, softmax);
    std::memcpy(out + i, &rest, static_cast<size_t>(count - i) * sizeof(float));
}

int64_t collect(const float* logits, int64_t n, const ColumnMaxima& maxima, float low, float high, int32_t* tokens,
                float* values) {
    int64_t count = 0;
    for_blocks_from(logits, n, maxima, low, [&](const float* from, int64_t block) {
        for (int64_t i = 0; i < sampling_block; i += lanes) {
            const Floats x = load(from + i);
            for (uint32_t bits = mask_bits((x >= low) & (x <= high)); bits; bits &= bits - 1, ++count) {
                const int64_t place = i + __builtin_ctz(bits);
                tokens[count] = static_cast<int32_t>(block * sampling_block + place);
                values[count] = from[place];
            }
        }
    });
    // What the last block was filled up with comes last.
    return low == minus_infinity ? count - (sampling_blocks(n) * sampling_block - n) : count;
}

void bucket_sums(const float* logits, int64_t n, const ColumnMaxima& maxima, const Softmax& softmax,
                 const Buckets& buckets, double* sums) {
    // Neighbours go to different copies of the sums: an addition to what was written just before would wait for it.
    static_assert(sampling_copies == 4 && lanes % 4 == 0, "");
    const Floats none = broadcast(static_cast<float>(buckets.count));
    const Ints copies = lane_numbers() & 3;
    for_blocks_from(logits, n, maxima, buckets.low, [&](const float* from, int64_t) {
        float weight[sampling_block];
        int32_t place[sampling_block];
        for (int64_t i = 0; i < sampling_block; i += lanes) {
            const Floats x = load(from + i);
            const Ints inside = (x >= buckets.low) & (x <= buckets.high);
            store(weight_of(x, softmax), weight + i);
            const Ints bucket = __builtin_convertvector(select(inside, (buckets.high - x) * buckets.factor, none), Ints);
            const Ints at = bucket * 4 + copies;
            std::memcpy(place + i, &at, sizeof at);
        }
        for (int64_t i = 0; i < sampling_block; ++i) sums[place[i]] += static_cast<double>(weight[i]);
    });
}

int64_t count_above(const float* logits, int64_t n, float value) {
    int64_t count = 0;
    for_each_block(logits, n, 0, sampling_blocks(n), [&](const float* from, int64_t) {
        Ints sum = {};
        for (int64_t i = 0; i < sampling_block; i += lanes) sum -= load(from + i) > value;
        for (int64_t lane = 0; lane < lanes; ++lane) count += sum[lane];
    });
    return count;
}

}  // namespace sampling_passes

constexpr SamplingKernels sampling_kernels() {
    return {sampling_passes::largest, sampling_passes::block_sums,  sampling_passes::weights,
            sampling_passes::collect, sampling_passes::bucket_sums, sampling_passes::count_above};
}

}  // namespace
}  // namespace paged_backend
