// What Python sees of sampling: reads the columns of a SamplingBatch, and gives those of a SampledBatch.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "philox.h"
#include "runtime.h"
#include "sampling.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace paged_backend {

namespace {

using Logits = nb::ndarray<const float, nb::device::cpu, nb::ndim<2>>;
using TokenMasks = nb::ndarray<const int32_t, nb::device::cpu, nb::ndim<2>, nb::c_contig>;

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void require(bool holds, const char* name, const char* what) {
    if (!holds) refuse(std::string(name) + " must " + what);
}

// A list or tuple of Python objects, lent while the GIL is held.
class Items {
  public:
    Items(nb::handle sequence, const char* name) {
        if (PyUnicode_Check(sequence.ptr()) || PyBytes_Check(sequence.ptr())) refuse_type(name);
        fast_ = nb::steal(PySequence_Fast(sequence.ptr(), ""));
        if (!fast_.is_valid()) refuse_type(name);
        items_ = PySequence_Fast_ITEMS(fast_.ptr());
        size_ = static_cast<size_t>(PySequence_Fast_GET_SIZE(fast_.ptr()));
    }

    size_t size() const { return size_; }
    nb::handle operator[](size_t i) const { return items_[i]; }

  private:
    [[noreturn]] static void refuse_type(const char* name) {
        PyErr_Clear();
        refuse(std::string(name) + " must be a list or a tuple.");
    }

    nb::object fast_;
    PyObject** items_;
    size_t size_;
};

int64_t integer(nb::handle item, const char* name) {
    const int64_t value = PyLong_AsLongLong(item.ptr());
    if (value == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        refuse(std::string(name) + " must hold integers of 64 bits.");
    }
    return value;
}

// A count of any size: what does not fit counts as the largest that does.
int64_t count(nb::handle item, const char* name) {
    int overflow = 0;
    const int64_t value = PyLong_AsLongLongAndOverflow(item.ptr(), &overflow);
    if (overflow > 0) return std::numeric_limits<int64_t>::max();
    if (overflow < 0) return std::numeric_limits<int64_t>::min();
    if (value == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        refuse(std::string(name) + " must hold integers.");
    }
    return value;
}

// Of 64 bits, signed or not.
uint64_t word(nb::handle item, const char* name) {
    const uint64_t value = PyLong_AsUnsignedLongLongMask(item.ptr());
    if (value == std::numeric_limits<uint64_t>::max() && PyErr_Occurred()) {
        PyErr_Clear();
        refuse(std::string(name) + " must hold integers.");
    }
    return value;
}

double number(nb::handle item, const char* name) {
    const double value = PyFloat_AsDouble(item.ptr());
    if (value == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        refuse(std::string(name) + " must hold numbers.");
    }
    return value;
}

Items column(nb::handle sequence, const char* name, size_t num_rows, bool may_be_empty) {
    Items items(sequence, name);
    if (items.size() != num_rows && !(may_be_empty && items.size() == 0)) {
        refuse(std::string(name) + " must have " + std::to_string(num_rows) + " entries, one for each row, got " +
               std::to_string(items.size()) + ".");
    }
    return items;
}

int32_t token_id(nb::handle item, const char* name, int64_t vocab_size) {
    const int64_t token = integer(item, name);
    if (token < 0 || token >= vocab_size) {
        refuse(std::string(name) + " must hold token ids in 0.." + std::to_string(vocab_size - 1) + ", got " +
               std::to_string(token) + ".");
    }
    return static_cast<int32_t>(token);
}

std::vector<int32_t> token_ids(nb::handle sequence, const char* name, int64_t vocab_size) {
    const Items items(sequence, name);
    std::vector<int32_t> tokens(items.size());
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = token_id(items[i], name, vocab_size);
    return tokens;
}

float penalty(nb::handle item, const char* name) {
    const auto value = static_cast<float>(number(item, name));
    require(std::isfinite(value), name, "be a finite number.");
    return value;
}

// The fields of kernels/sampling_batch.py's LogitChanges, in their order.
LogitChanges read_changes(nb::handle fields, int64_t vocab_size, const std::optional<TokenMasks>& masks) {
    const Items items(fields, "changes");
    require(items.size() == 9, "changes", "hold LogitChanges.");
    LogitChanges changes;
    changes.restricts = !items[0].is_none();
    if (changes.restricts) changes.allowed = token_ids(items[0], "allowed_token_ids", vocab_size);
    changes.suppressed = token_ids(items[1], "suppressed_token_ids", vocab_size);
    require(PyDict_Check(items[2].ptr()), "logit_bias", "be a dict.");
    for (const auto& [token, bias] : nb::borrow<nb::dict>(items[2])) {
        changes.biased.push_back(token_id(token, "logit_bias", vocab_size));
        changes.biases.push_back(penalty(bias, "logit_bias"));
    }
    changes.repetition_penalty = penalty(items[3], "repetition_penalty");
    require(changes.repetition_penalty > 0.0f, "repetition_penalty", "be above 0.");
    changes.presence_penalty = penalty(items[4], "presence_penalty");
    changes.frequency_penalty = penalty(items[5], "frequency_penalty");
    // Long lists: read only where they are used.
    if (changes.repetition_penalty != 1.0f) changes.prompt = token_ids(items[6], "prompt_token_ids", vocab_size);
    if (changes.repetition_penalty != 1.0f || changes.presence_penalty != 0.0f || changes.frequency_penalty != 0.0f) {
        changes.output = token_ids(items[7], "output_token_ids", vocab_size);
    }
    const int64_t mask = integer(items[8], "token_mask");
    const int64_t num_masks = masks ? static_cast<int64_t>(masks->shape(0)) : 0;
    require(mask >= -1 && mask < num_masks, "token_mask", "be -1 or a row of token_masks.");
    if (mask >= 0) changes.mask = reinterpret_cast<const uint32_t*>(masks->data()) + mask * masks->stride(0);
    return changes;
}

void read_draws(SamplingCall& call, nb::handle positions, nb::handle top_k, nb::handle top_p, nb::handle min_p) {
    bool draws = false;
    for (const SamplingRow& row : call.rows) draws |= row.temperature > 0.0;
    const size_t num_rows = call.rows.size();
    const Items position_items = column(positions, "positions", num_rows, !draws);
    const Items top_k_items = column(top_k, "top_k", num_rows, !draws);
    const Items top_p_items = column(top_p, "top_p", num_rows, !draws);
    const Items min_p_items = column(min_p, "min_p", num_rows, !draws);
    for (size_t i = 0; draws && i < num_rows; ++i) {
        SamplingRow& row = call.rows[i];
        const int64_t position = integer(position_items[i], "positions");
        require(position >= 0, "positions", "be 0 or more.");
        row.position = static_cast<uint64_t>(position);
        row.top_k = count(top_k_items[i], "top_k");
        require(row.top_k >= -1, "top_k", "be 0 or -1 (all) or more.");
        row.top_p = number(top_p_items[i], "top_p");
        require(row.top_p > 0.0 && row.top_p <= 1.0, "top_p", "be in (0, 1].");
        row.min_p = number(min_p_items[i], "min_p");
        require(row.min_p >= 0.0 && row.min_p <= 1.0, "min_p", "be in [0, 1].");
    }
}

void read_logprobs(SamplingCall& call, nb::handle num_logprobs) {
    const Items items = column(num_logprobs, "num_logprobs", call.rows.size(), true);
    if (items.size() == 0) return;
    call.logprobs.assign(call.seeds.size(), std::numeric_limits<float>::quiet_NaN());
    call.ranks.assign(call.seeds.size(), 0);
    call.top.resize(call.rows.size());
    for (size_t i = 0; i < items.size(); ++i) {
        const int64_t wanted = count(items[i], "num_logprobs");
        require(wanted >= -1, "num_logprobs", "be -1 (none) or more.");
        call.rows[i].num_logprobs = wanted;
        if (wanted > 0) call.top[i].resize(static_cast<size_t>(wanted < call.vocab_size ? wanted : call.vocab_size));
    }
}

// Rows and their samples: a row has one for each of its seeds, or as many as it takes of its most likely tokens, or those
// that are given.
void read_samples(SamplingCall& call, nb::handle seeds, nb::handle temperatures, nb::handle num_best, nb::handle given) {
    const size_t num_rows = call.rows.size();
    const Items seed_items = column(seeds, "seeds", num_rows, false);
    const Items temperature_items = column(temperatures, "temperatures", num_rows, false);
    const Items best_items = column(num_best, "num_best", num_rows, true);
    const Items given_items = column(given, "given", num_rows, true);
    call.seeds.reserve(num_rows);
    bool takes_best = false;
    for (size_t i = 0; i < num_rows; ++i) {
        SamplingRow& row = call.rows[i];
        row.temperature = number(temperature_items[i], "temperatures");
        require(row.temperature >= 0.0 && std::isfinite(row.temperature), "temperatures", "be 0 or more, and finite.");
        const Items own(seed_items[i], "seeds");
        row.first_sample = static_cast<int64_t>(call.seeds.size());
        if (best_items.size() != 0) row.num_best = integer(best_items[i], "num_best");
        require(row.num_best >= 0 && row.num_best <= call.vocab_size, "num_best", "be 0 to the vocabulary's size.");
        takes_best |= row.num_best > 0;
        std::vector<int32_t> tokens;
        if (given_items.size() != 0) tokens = token_ids(given_items[i], "given", call.vocab_size);
        row.is_given = !tokens.empty();
        if (row.is_given) {
            require(row.num_best == 0, "given", "be empty where num_best is above 0.");
            row.temperature = 0.0;
            call.seeds.resize(call.seeds.size() + tokens.size());
            call.tokens.resize(static_cast<size_t>(row.first_sample));
            call.tokens.insert(call.tokens.end(), tokens.begin(), tokens.end());
        } else if (row.num_best > 0) {
            row.temperature = 0.0;
            call.seeds.resize(call.seeds.size() + static_cast<size_t>(row.num_best));
        } else {
            require(own.size() > 0, "seeds", "hold at least one for each row that draws.");
            for (size_t j = 0; j < own.size(); ++j) call.seeds.push_back(word(own[j], "seeds"));
        }
        row.num_samples = static_cast<int64_t>(call.seeds.size()) - row.first_sample;
    }
    if (takes_best) call.scores.assign(call.seeds.size(), -std::numeric_limits<float>::infinity());
}

nb::list list_of_numbers(const std::vector<float>& values) {
    nb::list list;
    for (const float value : values) list.append(value);
    return list;
}

nb::list list_of_integers(const std::vector<int64_t>& values) {
    nb::object list = nb::steal(PyList_New(static_cast<Py_ssize_t>(values.size())));
    if (!list.is_valid()) throw nb::python_error();
    for (size_t i = 0; i < values.size(); ++i) {
        PyObject* item = PyLong_FromLongLong(values[i]);
        if (item == nullptr) throw nb::python_error();
        PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), item);
    }
    return nb::borrow<nb::list>(list);
}

nb::dict dict_of_top(const SamplingCall& call) {
    nb::dict by_row;
    for (size_t row = 0; row < call.top.size(); ++row) {
        if (call.rows[row].num_logprobs < 0 || call.tokens[static_cast<size_t>(call.rows[row].first_sample)] < 0) continue;
        nb::list pairs;
        for (const LikelyToken& likely : call.top[row]) pairs.append(nb::make_tuple(likely.token, likely.logprob));
        by_row[nb::int_(row)] = nb::tuple(pairs);
    }
    return by_row;
}

nb::tuple sample_batch(Runtime& runtime, const Logits& logits, nb::handle seeds, nb::handle temperatures,
                       nb::handle positions, nb::handle top_k, nb::handle top_p, nb::handle min_p,
                       nb::handle num_logprobs, nb::handle num_best, nb::handle given, nb::handle changes,
                       const std::optional<TokenMasks>& token_masks) {
    SamplingCall call;
    const size_t num_rows = logits.shape(0);
    call.logits = logits.data();
    call.vocab_size = static_cast<int64_t>(logits.shape(1));
    call.row_stride = logits.stride(0);
    require(call.vocab_size > 0 && call.vocab_size < std::numeric_limits<int32_t>::max(), "logits",
            "have a column for each token of the vocabulary.");
    require(logits.stride(1) == 1 || call.vocab_size == 1, "logits", "be contiguous within a row.");

    call.rows.resize(num_rows);
    read_samples(call, seeds, temperatures, num_best, given);
    read_draws(call, positions, top_k, top_p, min_p);
    read_logprobs(call, num_logprobs);
    require(!token_masks || static_cast<int64_t>(token_masks->shape(1)) * 32 >= call.vocab_size, "token_masks",
            "have a bit for each token.");
    require(PyDict_Check(changes.ptr()), "changes", "be a dict.");
    std::vector<LogitChanges> changes_of_rows;
    changes_of_rows.reserve(nb::len(changes));
    for (const auto& [row, fields] : nb::borrow<nb::dict>(changes)) {
        const int64_t index = integer(row, "changes");
        require(index >= 0 && index < static_cast<int64_t>(num_rows), "changes", "be of rows of logits.");
        changes_of_rows.push_back(read_changes(fields, call.vocab_size, token_masks));
        call.rows[static_cast<size_t>(index)].changes = &changes_of_rows.back();
    }
    call.tokens.resize(call.seeds.size());
    {
        const nb::gil_scoped_release released;
        const std::lock_guard<std::mutex> turn(runtime.turn());
        sample(runtime, call);
    }
    return nb::make_tuple(list_of_integers(call.tokens), list_of_numbers(call.logprobs), list_of_integers(call.ranks),
                          dict_of_top(call), list_of_numbers(call.scores));
}

}  // namespace

void bind_sampling(nb::module_& module) {
    // None is refused by name, like all else that is not a list.
    module.def("sample", &sample_batch, "runtime"_a, "logits"_a, "seeds"_a.none(), "temperatures"_a.none(),
               "positions"_a.none(), "top_k"_a.none(), "top_p"_a.none(), "min_p"_a.none(), "num_logprobs"_a.none(),
               "num_best"_a.none(), "given"_a.none(), "changes"_a.none(), "token_masks"_a.none(),
               "The fields of a SampledBatch for those of a SamplingBatch. Raises ValueError, before anything is drawn, "
               "for a wrong one.");
    module.def("uniform", &uniform, "seed"_a, "position"_a, "A number in [0, 1) that is a function of both.");
    module.def(
        "philox",
        [](uint64_t key, uint64_t low, uint64_t high) {
            const PhiloxWords words = philox(key, {low, high});
            return nb::make_tuple(words.low, words.high);
        },
        "key"_a, "low"_a, "high"_a, "Philox2x64-10: two random words for a key and a counter of two words.");
}

}  // namespace paged_backend
