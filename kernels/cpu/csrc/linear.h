// Packed linear layers (LINEAR's file; this is the part that others call).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace paged_backend {

class Runtime;

enum class Activation { none, silu, gelu, gelu_tanh, gelu_fast, quick_gelu, relu /* ... */ };  // PROGRAM's activation.h has the vector functions

// y = act(x @ weight.T + bias) + residual, or act(gate) * up for a gated layer. Pointers stay the caller's; strides in floats.
struct LinearCall {
    const float* x;          // [num_rows, num_inputs]
    int64_t x_stride;
    int64_t num_rows;
    float* out;              // [num_rows, num_outputs]; may be `residual`, must not overlap x
    int64_t out_stride;
    const float* residual = nullptr;  // [num_rows, num_outputs] or null
    int64_t residual_stride = 0;
    Activation activation = Activation::none;
};

class PackedLinear {
  public:
    int64_t num_inputs() const;
    int64_t num_outputs() const;   // half of the weight's rows for a gated layer
    // Runs on the runtime's team; the caller holds runtime.turn(). Throws std::invalid_argument for a wrong call, before anything is written.
    void run(Runtime& runtime, const LinearCall& call) const;
};

}  // namespace paged_backend
