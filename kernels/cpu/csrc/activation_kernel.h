// Activation functions on vectors, within a few units in the last place of the exact value.
#pragma once

#include "linear.h"
#include "simd.h"

namespace paged_backend {
namespace {

inline Floats magnitude_of(Floats x) { return as_floats(as_ints(x) & INT32_MAX); }

// 1 / (1 + exp(-x)), without overflow and exact in its small values too.
inline Floats sigmoid_of(Floats x) {
    const Floats e = exp_not_positive(-magnitude_of(x));
    return select(x < 0.0f, e, broadcast(1.0f)) / (1.0f + e);
}

// exp(t^2) * erfc(t) / s for t in 0 .. 9.6, with s = 1 / (1 + t / 2): Chebyshev's approximation of degree 8, relative
// error below 5e-8.
inline Floats scaled_erfc_of(Floats s) {
    Floats p = broadcast(-0.05998138f);
    p = p * s + 0.28883842f;
    p = p * s - 0.49560179f;
    p = p * s + 0.28714823f;
    p = p * s - 0.03248528f;
    p = p * s + 0.20498637f;
    p = p * s + 0.2425706f;
    p = p * s + 0.28244177f;
    p = p * s + 0.28208302f;
    return p * s;
}

// x * (1 + erf(x / sqrt(2))) / 2: the half of erfc(|x| / sqrt(2)) is the small one of the two probabilities.
inline Floats gelu_of(Floats x) {
    Floats magnitude = magnitude_of(x);
    magnitude = select(magnitude > 13.4f, broadcast(13.4f), magnitude);  // from here on erfc is 0 in float32
    // exp(-x^2 / 2) needs x^2 exactly: the square of x's upper half is exact.
    const Floats upper = as_floats(as_ints(magnitude) & ~0xfff);
    const Floats e = exp_not_positive(-0.5f * (upper * upper)) *
                     exp_not_positive(-0.5f * ((magnitude - upper) * (magnitude + upper)));
    const Floats tail = 0.5f * e * scaled_erfc_of(1.0f / (1.0f + 0.35355339059327376f * magnitude));
    return x * select(x < 0.0f, tail, 1.0f - tail);
}

// x * (1 + tanh(u)) / 2 = x * sigmoid(2 u) with u = sqrt(2 / pi) * (x + 0.044715 x^3)
inline Floats gelu_tanh_of(Floats x) {
    const Floats twice = 1.59576912160573071f * x * (1.0f + 0.044715f * (x * x));
    return x * sigmoid_of(twice);
}

template <Activation activation>
inline Floats activate(Floats x) {
    if constexpr (activation == Activation::silu) return x * sigmoid_of(x);
    if constexpr (activation == Activation::gelu) return gelu_of(x);
    if constexpr (activation == Activation::gelu_tanh) return gelu_tanh_of(x);
    if constexpr (activation == Activation::quick_gelu) return x * sigmoid_of(1.702f * x);
    if constexpr (activation == Activation::relu) return select(x < 0.0f, Floats{}, x);
    if constexpr (activation == Activation::relu_squared) return select(x < 0.0f, Floats{}, x * x);
    if constexpr (activation == Activation::sigmoid) return sigmoid_of(x);
    if constexpr (activation == Activation::tanh) return tanh_of(x);
    return x;
}

// Calls function.run<activation>() with the activation as a constant.
template <class Function>
inline void with_activation(Activation activation, const Function& function) {
    switch (activation) {
        case Activation::none: return function.template run<Activation::none>();
        case Activation::silu: return function.template run<Activation::silu>();
        case Activation::gelu: return function.template run<Activation::gelu>();
        case Activation::gelu_tanh: return function.template run<Activation::gelu_tanh>();
        case Activation::quick_gelu: return function.template run<Activation::quick_gelu>();
        case Activation::relu: return function.template run<Activation::relu>();
        case Activation::relu_squared: return function.template run<Activation::relu_squared>();
        case Activation::sigmoid: return function.template run<Activation::sigmoid>();
        case Activation::tanh: return function.template run<Activation::tanh>();
    }
}

}  // namespace
}  // namespace paged_backend
