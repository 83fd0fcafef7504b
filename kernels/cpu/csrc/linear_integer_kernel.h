// The innermost loops of a linear layer with quantised weights and activations: whole-number dot products of a segment
// (inputs that share both scales), which are then scaled and added to the float32 sums.
#pragma once

#include "linear_tile_kernel.h"

#if defined(__AVX2__)

namespace paged_backend {
namespace {

inline Ints broadcast_word(const char* from) {
    int32_t word;
    std::memcpy(&word, from, sizeof word);
    return word - Ints{};
}

inline Ints load_words(const char* from) {
    Ints words;
    std::memcpy(&words, from, sizeof words);
    return words;
}

// sums + x[0] * w[0] + x[1] * w[1] in each lane of 32 bits, both of 16 bits.
inline Ints dot2(Ints sums, Ints weights, Ints x) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)weights, (__m512i)x);
#elif defined(__AVX512BW__)
    return sums + (Ints)_mm512_madd_epi16((__m512i)weights, (__m512i)x);
#else
    return sums + (Ints)_mm256_madd_epi16((__m256i)weights, (__m256i)x);
#endif
}

inline Ints shift_halves(Ints words, int count) {
#if defined(__AVX512BW__)
    return (Ints)_mm512_srli_epi16((__m512i)words, static_cast<unsigned>(count));
#else
    return (Ints)_mm256_srli_epi16((__m256i)words, count);
#endif
}

// Activations of 16 bits. Four inputs k lie as k0 k2 k1 k3: as the even and the odd bytes of a word of weights do.
struct Int16Rows {
    static constexpr int64_t word_count = 2;  // words that hold four inputs

    // weights: four inputs a lane, unsigned bytes.
    template <int rows>
    static void add4(Ints (&low)[rows], Ints (&high)[rows], Ints low_weights, Ints high_weights, const char* x) {
        add_words<rows>(low, high, low_weights & 0x00ff00ff, high_weights & 0x00ff00ff, x);
        add_words<rows>(low, high, shift_halves(low_weights, 8), shift_halves(high_weights, 8), x + 4);
    }

    // weights: eight inputs a lane, four bits each: byte j holds input j in its low half and input 4 + j in its high
    // half.
    template <int rows>
    static void add8(Ints (&low)[rows], Ints (&high)[rows], Ints low_weights, Ints high_weights, const char* x) {
        const char* second = x + 8 * rows;
        add_words<rows>(low, high, low_weights & 0x000f000f, high_weights & 0x000f000f, x);
        add_words<rows>(low, high, shift_halves(low_weights, 8) & 0x000f000f,
                        shift_halves(high_weights, 8) & 0x000f000f, x + 4);
        add_words<rows>(low, high, shift_halves(low_weights, 4) & 0x000f000f,
                        shift_halves(high_weights, 4) & 0x000f000f, second);
        add_words<rows>(low, high, shift_halves(low_weights, 12), shift_halves(high_weights, 12), second + 4);
    }

    template <int rows>
    static void add_words(Ints (&low)[rows], Ints (&high)[rows], Ints low_weights, Ints high_weights, const char* x) {
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row) {
            const Ints value = broadcast_word(x + 8 * row);
            low[row] = dot2(low[row], low_weights, value);
            high[row] = dot2(high[row], high_weights, value);
        }
    }
};

#if defined(__AVX512VNNI__)

// Activations of 8 bits, times unsigned weights of 8 bits.
struct Int8Rows {
    static constexpr int64_t word_count = 1;

    template <int rows>
    static void add4(Ints (&low)[rows], Ints (&high)[rows], Ints low_weights, Ints high_weights, const char* x) {
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row) {
            const __m512i value = (__m512i)broadcast_word(x + 4 * row);
            low[row] = (Ints)_mm512_dpbusd_epi32((__m512i)low[row], (__m512i)low_weights, value);
            high[row] = (Ints)_mm512_dpbusd_epi32((__m512i)high[row], (__m512i)high_weights, value);
        }
    }

    template <int rows>
    static void add8(Ints (&low)[rows], Ints (&high)[rows], Ints low_weights, Ints high_weights, const char* x) {
        add4<rows>(low, high, low_weights & 0x0f0f0f0f, high_weights & 0x0f0f0f0f, x);
        add4<rows>(low, high, (low_weights >> 4) & 0x0f0f0f0f, (high_weights >> 4) & 0x0f0f0f0f, x + 4 * rows);
    }
};

#endif

// Steps of eight inputs.
struct Int8Weights {
    static constexpr int64_t input_bytes = 32;
    template <class Rows, int rows>
    static void add(Ints (&low)[rows], Ints (&high)[rows], const char* step, int64_t column, const char* x) {
        const char* at = step + 4 * column;
        Rows::template add4<rows>(low, high, load_words(at), load_words(at + 64), x);
        Rows::template add4<rows>(low, high, load_words(at + 128), load_words(at + 192),
                                  x + 4 * Rows::word_count * rows);
    }
};

struct Int4Weights {
    static constexpr int64_t input_bytes = 16;
    template <class Rows, int rows>
    static void add(Ints (&low)[rows], Ints (&high)[rows], const char* step, int64_t column, const char* x) {
        const char* at = step + 4 * column;
        Rows::template add8<rows>(low, high, load_words(at), load_words(at + 64), x);
    }
};

template <class Weights, class Rows, int rows, int pairs>
inline void integer_pass(const LinearTile& tile, int64_t first_column) {
    constexpr int64_t step_bytes = 8 * Weights::input_bytes;
    prefetch_gap<rows, Weights>(tile.panel + tile.segments[tile.first_segment].data);
    for (int64_t index = tile.first_segment; index < tile.end_segment; ++index) {
        const LinearSegment segment = tile.segments[index];
        const float* x_scales = tile.rows.scales + index * rows;
        const char* start = reinterpret_cast<const char*>(tile.rows.start + index * rows);
        Ints low[pairs][rows], high[pairs][rows];
#pragma GCC unroll 16
        for (int pair = 0; pair < pairs; ++pair) {
#pragma GCC unroll 16
            for (int row = 0; row < rows; ++row) low[pair][row] = high[pair][row] = broadcast_word(start + 4 * row);
        }
        const char* x = tile.rows.values + segment.padded_begin * (Rows::word_count * rows);
        const char* step = tile.panel + segment.data;
        const char* end = step + (segment.length + 7) / 8 * step_bytes;
        for (; step < end; step += step_bytes) {
#pragma GCC unroll 4
            for (int64_t line = 0; line < step_bytes; line += 64) prefetch_ahead<rows, Weights>(step + line);
#pragma GCC unroll 16
            for (int pair = 0; pair < pairs; ++pair) {
                Weights::template add<Rows, rows>(low[pair], high[pair], step, first_column + pair * lanes, x);
            }
            x += 8 * Rows::word_count * rows;
        }
        // The steps' prefetches leave out what lies as far behind the scales.
        const float* scales = reinterpret_cast<const float*>(tile.panel + segment.scales) + first_column;
        prefetch_ahead<rows, Weights>(tile.panel + segment.scales);
        prefetch_ahead<rows, Weights>(tile.panel + segment.scales + 64);
#pragma GCC unroll 16
        for (int pair = 0; pair < pairs; ++pair, scales += lanes) {
            const Floats low_scales = load(scales), high_scales = load(scales + 16);
#pragma GCC unroll 16
            for (int row = 0; row < rows; ++row) {
                const Floats x_scale = broadcast(x_scales[row]);
                const Floats low_part = __builtin_convertvector(low[pair][row], Floats);
                const Floats high_part = __builtin_convertvector(high[pair][row], Floats);
                float* to = tile.sums + row * panel_width + first_column + pair * lanes;
                store(load(to) + low_part * (low_scales * x_scale), to);
                store(load(to + 16) + high_part * (high_scales * x_scale), to + 16);
            }
        }
    }
}

template <class Weights, class Rows, int rows>
void integer_tile(const LinearTile& tile) {
    constexpr int pairs = pairs_at_once(rows);
    for (int64_t column = 0; column < 16; column += pairs * lanes) {
        integer_pass<Weights, Rows, rows, pairs>(tile, column);
    }
}

}  // namespace
}  // namespace paged_backend

#endif
