#include "copy_blocks.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime.h"

namespace paged_backend {

namespace {

struct Pair {
    int64_t source;
    int64_t destination;
};

// In the order of their destinations, which are all different.
std::vector<Pair> sorted_pairs(const CopyBlocksArgs& args) {
    std::vector<Pair> pairs;
    pairs.reserve(static_cast<size_t>(args.num_pairs));
    for (int64_t i = 0; i < args.num_pairs; ++i) {
        const Pair pair = {args.pairs[2 * i], args.pairs[2 * i + 1]};
        for (const int64_t block : {pair.source, pair.destination}) {
            if (block < 0 || block >= args.num_blocks) {
                throw std::invalid_argument("pairs must be in 0.." + std::to_string(args.num_blocks - 1) + ", got " +
                                            std::to_string(block) + ".");
            }
        }
        pairs.push_back(pair);
    }
    std::sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) { return a.destination < b.destination; });
    for (size_t i = 1; i < pairs.size(); ++i) {
        if (pairs[i].destination == pairs[i - 1].destination) {
            throw std::invalid_argument("pairs must have different destinations, got block " +
                                        std::to_string(pairs[i].destination) + " twice.");
        }
    }
    return pairs;
}

}  // namespace

void copy_blocks(Runtime& runtime, const CopyBlocksArgs& args) {
    std::vector<Pair> pairs = sorted_pairs(args);
    const auto is_destination = [&](int64_t block) {
        const auto at = std::lower_bound(pairs.begin(), pairs.end(), block,
                                         [](const Pair& pair, int64_t wanted) { return pair.destination < wanted; });
        return at != pairs.end() && at->destination == block;
    };
    // Sources that will be overwritten are set aside first.
    std::vector<Pair> plain;
    std::vector<Pair> set_aside;
    for (const Pair& pair : pairs) {
        if (pair.source == pair.destination) continue;
        (is_destination(pair.source) ? set_aside : plain).push_back(pair);
    }
    if ((plain.empty() && set_aside.empty()) || args.block_bytes == 0) return;
    const auto bytes = static_cast<size_t>(args.block_bytes);
    char* const* scratch = runtime.scratch(static_cast<int64_t>(set_aside.size() * bytes));
    runtime.team().run(args.num_tables, [&](int64_t table, int thread) {
        char* blocks = args.storage + table * args.num_blocks * args.block_bytes;
        const auto block = [&](int64_t number) { return blocks + number * args.block_bytes; };
        char* aside = scratch[thread];
        for (size_t i = 0; i < set_aside.size(); ++i) std::memcpy(aside + i * bytes, block(set_aside[i].source), bytes);
        for (const Pair& pair : plain) std::memcpy(block(pair.destination), block(pair.source), bytes);
        for (size_t i = 0; i < set_aside.size(); ++i) std::memcpy(block(set_aside[i].destination), aside + i * bytes, bytes);
    });
}

}  // namespace paged_backend
