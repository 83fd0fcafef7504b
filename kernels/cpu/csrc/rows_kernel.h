// Operations on rows for one instruction set. Include it only in files that are compiled for one.
//
// Sums of a row are 64 partial sums, one for each place modulo 64, added up by one tree of halves: the same order for
// every instruction set, and for every row.
#pragma once

#include "rows.h"
#include "simd.h"
#include "write_kv_kernel.h"

namespace paged_backend {
namespace {

constexpr int64_t num_partial_sums = 64;
constexpr int64_t num_sum_vectors = num_partial_sums / lanes;

// Sum of term(x) over a row. Places past its end count as `padding`, whose term must be 0.
template <class Term>
inline float sum_over_row(const float* x, int64_t width, float padding, const Term& term) {
    Floats sums[num_sum_vectors];
    for (int64_t i = 0; i < num_sum_vectors; ++i) sums[i] = Floats{};
    int64_t begin = 0;
    for (; begin + num_partial_sums <= width; begin += num_partial_sums) {
        for (int64_t i = 0; i < num_sum_vectors; ++i) sums[i] += term(load(x + begin + i * lanes));
    }
    if (begin < width) {
        alignas(64) float rest[num_partial_sums];
        for (int64_t i = 0; i < num_partial_sums; ++i) rest[i] = begin + i < width ? x[begin + i] : padding;
        for (int64_t i = 0; i < num_sum_vectors; ++i) sums[i] += term(load(rest + i * lanes));
    }
    for (int64_t half = num_sum_vectors / 2; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    return sum_lanes(sums[0]);
}

inline float sum_of_squares(const float* x, int64_t width) {
    return sum_over_row(x, width, 0.0f, [](Floats part) { return part * part; });
}

inline float inverse_root(float mean_square, float eps) { return 1.0f / __builtin_sqrtf(mean_square + eps); }

// out = x / sqrt(mean(x^2) + eps) * weight; out may be x
inline void rms_norm_row(const float* x, const float* weight, int64_t width, float eps, float* out) {
    const float factor = inverse_root(sum_of_squares(x, width) / static_cast<float>(width), eps);
    int64_t i = 0;
    for (; i + lanes <= width; i += lanes) store(load(x + i) * factor * load(weight + i), out + i);
    for (; i < width; ++i) out[i] = x[i] * factor * weight[i];
}

// out = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias; out may be x
inline void layer_norm_row(const float* x, const float* weight, const float* bias, int64_t width, float eps, float* out) {
    const auto count = static_cast<float>(width);
    const float mean = sum_over_row(x, width, 0.0f, [](Floats part) { return part; }) / count;
    const float squares = sum_over_row(x, width, mean, [=](Floats part) {
        const Floats centred = part - mean;
        return centred * centred;
    });
    const float factor = inverse_root(squares / count, eps);
    int64_t i = 0;
    for (; i + lanes <= width; i += lanes) {
        Floats value = (load(x + i) - mean) * factor;
        if (weight != nullptr) value *= load(weight + i);
        if (bias != nullptr) value += load(bias + i);
        store(value, out + i);
    }
    for (; i < width; ++i) {
        float value = (x[i] - mean) * factor;
        if (weight != nullptr) value *= weight[i];
        if (bias != nullptr) value += bias[i];
        out[i] = value;
    }
}

inline void add_row(const float* x, const float* y, int64_t width, float* out) {
    int64_t i = 0;
    for (; i + lanes <= width; i += lanes) store(load(x + i) + load(y + i), out + i);
    for (; i < width; ++i) out[i] = x[i] + y[i];
}

// Calls norm(x, out) for each row.
template <class Norm>
inline void norm_rows(const NormArgs& args, int64_t first, int64_t end, const Norm& norm) {
    for (int64_t row = first; row < end; ++row) {
        norm(args.x + row * args.x_stride, args.out + row * args.out_stride);
    }
}

inline void rms_norm_rows(const NormArgs& args, int64_t first, int64_t end) {
    norm_rows(args, first, end,
              [&](const float* x, float* out) { rms_norm_row(x, args.weight, args.width, args.eps, out); });
}

inline void layer_norm_rows(const NormArgs& args, int64_t first, int64_t end) {
    norm_rows(args, first, end,
              [&](const float* x, float* out) { layer_norm_row(x, args.weight, args.bias, args.width, args.eps, out); });
}

template <class T>
inline void widen_row(const T* from, int64_t width, float* to) {
    int64_t i = 0;
    for (; i + lanes <= width; i += lanes) store(widen(from + i), to + i);
    for (; i < width; ++i) to[i] = to_float(from[i]);
}

inline void widen_row(const float* from, int64_t width, float* to) {
    std::memcpy(to, from, static_cast<size_t>(width) * sizeof(float));
}

template <class T>
inline void embedding_rows_of(const EmbeddingArgs& args, int64_t first, int64_t end) {
    constexpr int64_t part = 256;
    for (int64_t row = first; row < end; ++row) {
        const T* from = static_cast<const T*>(args.table) + args.indices[row] * args.width;
        float* out = args.out + row * args.out_stride;
        if (args.add == nullptr) {
            widen_row(from, args.width, out);
            continue;
        }
        const float* add = args.add + row * args.add_stride;
        alignas(64) float wide[part];
        for (int64_t i = 0; i < args.width; i += part) {
            const int64_t count = args.width - i < part ? args.width - i : part;
            widen_row(from + i, count, wide);
            add_row(wide, add + i, count, out + i);
        }
    }
}

inline void embedding_rows(const EmbeddingArgs& args, int64_t first, int64_t end) {
    switch (args.dtype) {
        case TableDtype::float32: return embedding_rows_of<float>(args, first, end);
        case TableDtype::bfloat16: return embedding_rows_of<Bfloat16>(args, first, end);
        case TableDtype::float16: return embedding_rows_of<Float16>(args, first, end);
    }
}

inline void soft_cap_rows(const SoftCapArgs& args, int64_t first, int64_t end) {
    for (int64_t row = first; row < end; ++row) {
        const float* x = args.x + row * args.x_stride;
        float* out = args.out + row * args.out_stride;
        int64_t i = 0;
        for (; i + lanes <= args.width; i += lanes) store(args.cap * tanh_of(load(x + i) / args.cap), out + i);
        if (i == args.width) continue;
        float rest[lanes] = {};
        const size_t num_bytes = static_cast<size_t>(args.width - i) * sizeof(float);
        std::memcpy(rest, x + i, num_bytes);
        store(args.cap * tanh_of(load(rest) / args.cap), rest);
        std::memcpy(out + i, rest, num_bytes);
    }
}

// Turns pairs (i, i + num_rotated / 2) of a head by its position's angles; out may be head.
inline void turn_head(const float* head, const float* cos, const float* sin, int64_t num_rotated, float* out) {
    const int64_t half = num_rotated / 2;
    int64_t i = 0;
    for (; i + lanes <= half; i += lanes) {
        const Floats low = load(head + i), high = load(head + half + i);
        store(low * load(cos + i) - high * load(sin + i), out + i);
        store(high * load(cos + half + i) + low * load(sin + half + i), out + half + i);
    }
    for (; i < half; ++i) {
        const float low = head[i], high = head[half + i];
        out[i] = low * cos[i] - high * sin[i];
        out[half + i] = high * cos[half + i] + low * sin[half + i];
    }
}

inline void qkv_to_cache_rows(const QkvToCacheArgs& args, int64_t first, int64_t end) {
    const CacheLayout layout = args.cache;
    const int64_t head_size = layout.head_size;
    const size_t head_bytes = static_cast<size_t>(head_size) * sizeof(float);
    for (int64_t row = first; row < end; ++row) {
        const float* head = args.qkv + row * args.qkv_stride;
        float* query = args.query + row * args.query_stride;
        const float* cos = args.cos == nullptr ? nullptr : args.cos + args.positions[row] * args.num_rotated;
        const float* sin = args.cos == nullptr ? nullptr : args.sin + args.positions[row] * args.num_rotated;
        const auto finish = [&](const float* from, const float* norm, float* to) {
            if (norm != nullptr) {
                rms_norm_row(from, norm, head_size, args.norm_eps, to);
            } else if (from != to) {
                std::memcpy(to, from, head_bytes);
            }
            if (cos != nullptr) turn_head(to, cos, sin, args.num_rotated, to);
        };
        for (int64_t i = 0; i < args.num_heads; ++i) {
            finish(head, args.query_norm, query);
            head += head_size;
            query += head_size;
        }
        const int64_t block = args.slots[row] / layout.block_size, offset = args.slots[row] % layout.block_size;
        char* keys = args.keys + block * args.key_block_stride;
        char* values = args.values + block * args.value_block_stride;
        for (int64_t i = 0; i < layout.num_kv_heads; ++i) {
            alignas(64) float key[max_head_size];
            finish(head, args.key_norm, key);
            store_key(keys, layout, i, offset, key);
            head += head_size;
        }
        for (int64_t i = 0; i < layout.num_kv_heads; ++i) {
            store_value(values, layout, i, offset, head);
            head += head_size;
        }
    }
}

inline RowKernels row_kernels() {
    return {rms_norm_rows, layer_norm_rows, embedding_rows, soft_cap_rows, qkv_to_cache_rows};
}

}  // namespace
}  // namespace paged_backend
