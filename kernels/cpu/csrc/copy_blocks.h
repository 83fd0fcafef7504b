// Copies of whole blocks of the paged cache.
#pragma once

#include <cstdint>

namespace paged_backend {

class Runtime;

struct CopyBlocksArgs {
    char* storage;         // [num_tables, num_blocks, block_bytes]: keys and values of all layers
    const int64_t* pairs;  // [num_pairs, 2]: source block, destination block
    int64_t num_tables;
    int64_t num_blocks;
    int64_t block_bytes;
    int64_t num_pairs;
};

// All sources are read before any destination is written, so a block may be both. The caller holds runtime.turn().
// Throws std::invalid_argument, before anything is written, for blocks outside the storage and for a block that is the
// destination of two pairs.
void copy_blocks(Runtime& runtime, const CopyBlocksArgs& args);

}  // namespace paged_backend
