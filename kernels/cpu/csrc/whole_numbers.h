// Divisions that round up, of whole numbers that are not negative.
#pragma once

#include <cstdint>

namespace paged_backend {
namespace {  // each instruction set's file keeps its own copy

constexpr int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

constexpr int64_t round_up(int64_t value, int64_t multiple) { return divide_up(value, multiple) * multiple; }

}  // namespace
}  // namespace paged_backend
