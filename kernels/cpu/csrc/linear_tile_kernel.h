// The innermost loops of a linear layer with float weights: a tile of sums in registers, rows x 32 of a panel.
#pragma once

#include "linear.h"
#include "simd.h"

namespace paged_backend {
namespace {

// A panel's columns are taken in pairs of vectors, column and 16 + column: where two 16-bit weights share a word, and a
// gate its word with its up.
constexpr int pairs_in_panel = static_cast<int>(16 / lanes);

// Sums that fit into the registers, beside weights and one number of x.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int max_tile_vectors = 24;
#else
constexpr int max_tile_vectors = 12;
#endif
constexpr int max_rows_here = max_tile_vectors / 2;

// What is fetched ahead, bytes from where a loop stands; behind a panel's end the next one begins. Measured on Zen 4
// with weights that no cache holds. With few rows the memory is the limit, and the nearest cache can wait for few lines
// only: int8 weights, which are used up the fastest, go to the second cache first. With more rows there is time, and
// the further ahead the better.
struct Ahead {
    int64_t near;  // into the nearest cache
    int64_t far;   // into the second nearest; 0: not at all
};

// input_bytes: of a panel's weights for one input.
constexpr Ahead ahead_of(int rows, int64_t input_bytes) {
    if (rows >= (input_bytes == 128 ? 6 : 4)) return {1024, 8192};
    if (rows <= 2 && input_bytes == 32) return {1024, 4096};
    return {2048, 0};
}

template <int rows, class Weights>
inline void prefetch_ahead(const char* at) {
    constexpr Ahead ahead = ahead_of(rows, Weights::input_bytes);
    __builtin_prefetch(at + ahead.near);
    if constexpr (ahead.far != 0) __builtin_prefetch(at + ahead.far, 0, 2);
}

// Scales and a bias at the end of the panel before have put nobody ahead: the lines that this leaves out.
template <int rows, class Weights>
inline void prefetch_gap(const char* panel) {
#pragma GCC unroll 4
    for (int64_t gap = 64; gap <= 256; gap += 64) prefetch_ahead<rows, Weights>(panel - gap);
}

struct Float32Weights {
    static constexpr int64_t input_bytes = 128;
    static void load_pair(const char* step, int64_t column, Floats& low, Floats& high) {
        const float* weights = reinterpret_cast<const float*>(step);
        low = load(weights + column);
        high = load(weights + 16 + column);
    }
};

// Word j of an input's 16 holds column j in its low half and column 16 + j in its high half.
struct Bfloat16Weights {
    static constexpr int64_t input_bytes = 64;
    static void load_pair(const char* step, int64_t column, Floats& low, Floats& high) {
        Ints words;
        std::memcpy(&words, step + 4 * column, sizeof words);
        low = as_floats(words << 16);
        high = as_floats(words & static_cast<int32_t>(0xffff0000u));
    }
};

struct Float16Weights {
    static constexpr int64_t input_bytes = 64;
    static void load_pair(const char* step, int64_t column, Floats& low, Floats& high) {
        const Float16* weights = reinterpret_cast<const Float16*>(step);
        low = widen(weights + column);
        high = widen(weights + 16 + column);
    }
};

// `pairs` of the panel's pairs of vectors.
template <class Weights, int rows, int pairs>
inline void float_pass(const LinearTile& tile, int64_t first_column) {
    Floats low[rows][pairs], high[rows][pairs];
    float* sums = tile.sums + first_column;
#pragma GCC unroll 16
    for (int pair = 0; pair < pairs; ++pair) {
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row) {
            low[row][pair] = load(sums + row * panel_width + pair * lanes);
            high[row][pair] = load(sums + row * panel_width + pair * lanes + 16);
        }
    }
    prefetch_gap<rows, Weights>(tile.panel);
    // Three bases and two strides reach twelve rows.
    const int64_t stride = tile.x_stride;
    const float* x[3] = {tile.x, tile.x + 4 * stride, tile.x + 8 * stride};
    const char* step = tile.panel;
    for (int64_t input = 0; input < tile.num_inputs; ++input, step += Weights::input_bytes) {
#pragma GCC unroll 2
        for (int64_t line = 0; line < Weights::input_bytes; line += 64) prefetch_ahead<rows, Weights>(step + line);
#pragma GCC unroll 16
        for (int pair = 0; pair < pairs; ++pair) {
            Floats low_weights, high_weights;
            Weights::load_pair(step, first_column + pair * lanes, low_weights, high_weights);
#pragma GCC unroll 16
            for (int row = 0; row < rows; ++row) {
                const Floats value = broadcast(x[row / 4][row % 4 * stride + input]);
                low[row][pair] += low_weights * value;
                high[row][pair] += high_weights * value;
            }
        }
    }
#pragma GCC unroll 16
    for (int pair = 0; pair < pairs; ++pair) {
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row) {
            store(low[row][pair], sums + row * panel_width + pair * lanes);
            store(high[row][pair], sums + row * panel_width + pair * lanes + 16);
        }
    }
}

// As many as the registers hold.
constexpr int pairs_at_once(int rows) {
    int pairs = pairs_in_panel;
    while (pairs > 1 && 2 * rows * pairs > max_tile_vectors) pairs /= 2;
    return pairs;
}

template <class Weights, int rows>
void float_tile(const LinearTile& tile) {
    constexpr int pairs = pairs_at_once(rows);
    for (int64_t column = 0; column < 16; column += pairs * lanes) float_pass<Weights, rows, pairs>(tile, column);
}

}  // namespace
}  // namespace paged_backend
