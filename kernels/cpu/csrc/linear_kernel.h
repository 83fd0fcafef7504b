// A linear layer's part of an instruction set's table, and what is done with finished sums.
#pragma once

#include "activation_kernel.h"
#include "linear.h"
#include "linear_integer_kernel.h"
#include "linear_quantize_kernel.h"
#include "linear_tile_kernel.h"

namespace paged_backend {
namespace {

// Bias, activation, gate and residual of one panel's sums. Columns past the last output are computed aside.
struct FinishPanel {
    const LinearFinish& panel;

    template <Activation activation>
    void run() const {
        if (panel.gated) {
            rows<activation, true>();
        } else {
            rows<activation, false>();
        }
    }

    template <Activation activation, bool gated>
    void rows() const {
        constexpr int64_t width = gated ? panel_width / 2 : panel_width;
        for (int64_t row = 0; row < panel.num_rows; ++row) {
            const float* sums = panel.sums + row * panel_width;
            const float* residual = panel.residual == nullptr ? nullptr : panel.residual + row * panel.residual_stride;
            float* out = panel.out + row * panel.out_stride;
            if (panel.num_columns == width) {
                columns<activation, gated>(sums, residual, out);
                continue;
            }
            const size_t num_bytes = static_cast<size_t>(panel.num_columns) * sizeof(float);
            alignas(64) float aside[panel_width], residual_aside[panel_width] = {};
            if (residual != nullptr) std::memcpy(residual_aside, residual, num_bytes);
            columns<activation, gated>(sums, residual == nullptr ? nullptr : residual_aside, aside);
            std::memcpy(out, aside, num_bytes);
        }
    }

    Floats biased(const float* sums, int64_t column) const {
        return panel.bias == nullptr ? load(sums + column) : load(sums + column) + load(panel.bias + column);
    }

    template <Activation activation, bool gated>
    void columns(const float* sums, const float* residual, float* out) const {
        for (int64_t column = 0; column < panel_width / (gated ? 2 : 1); column += lanes) {
            Floats value = activate<activation>(biased(sums, column));
            if constexpr (gated) value *= biased(sums, 16 + column);
            if (residual != nullptr) value += load(residual + column);
            store(value, out + column);
        }
    }
};

inline void finish_panel(const LinearFinish& panel) { with_activation(panel.activation, FinishPanel{panel}); }

template <class Weights, int rows = 1>
inline void list_float_tiles(LinearKernels& kernels, TileFormat format) {
    kernels.tiles[static_cast<int>(format)][rows - 1] = float_tile<Weights, rows>;
    if constexpr (rows < max_rows_here) list_float_tiles<Weights, rows + 1>(kernels, format);
}

#if defined(__AVX2__)
template <class Weights, class Rows, int rows = 1>
inline void list_integer_tiles(LinearKernels& kernels, TileFormat format) {
    kernels.tiles[static_cast<int>(format)][rows - 1] = integer_tile<Weights, Rows, rows>;
    if constexpr (rows < max_rows_here) list_integer_tiles<Weights, Rows, rows + 1>(kernels, format);
}
#endif

inline LinearKernels linear_kernels() {
    LinearKernels kernels = {};
    kernels.max_rows = max_rows_here;
    list_float_tiles<Float32Weights>(kernels, TileFormat::float32);
    list_float_tiles<Bfloat16Weights>(kernels, TileFormat::bfloat16);
    list_float_tiles<Float16Weights>(kernels, TileFormat::float16);
#if defined(__AVX2__)
    list_integer_tiles<Int8Weights, Int16Rows>(kernels, TileFormat::int8_int16);
    list_integer_tiles<Int4Weights, Int16Rows>(kernels, TileFormat::int4_int16);
#endif
#if defined(__AVX512VNNI__)
    list_integer_tiles<Int8Weights, Int8Rows>(kernels, TileFormat::int8_int8);
    list_integer_tiles<Int4Weights, Int8Rows>(kernels, TileFormat::int4_int8);
#endif
    kernels.quantize_int8 = quantize_rows<int8_t, 127>;
    kernels.quantize_int16 = quantize_rows<int16_t, 32767>;
    kernels.dequantize = dequantize_segment;
    kernels.finish = finish_panel;
    return kernels;
}

}  // namespace
}  // namespace paged_backend
