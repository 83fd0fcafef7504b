// What a request's parameters do to its logits before a token is drawn.
#pragma once

#include "sampling.h"

namespace paged_backend {

// Changes `logits` [vocab_size]. `counts` [vocab_size] is memory to work with; `kept` holds as many floats as there are
// allowed tokens.
void change_logits(const LogitChanges& changes, float* logits, int64_t vocab_size, int32_t* counts, float* kept);

}  // namespace paged_backend
