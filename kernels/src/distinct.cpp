// How many different texts an array of a GGUF file holds: 262,144 of them are counted in every start.
#include <nanobind/nanobind.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

namespace nb = nanobind;

namespace {

// As llama.cpp reads them: token i without a text is called [EMPTY_i].
size_t distinct_tokens(const nb::bytes& section, size_t count) {
    const char* at = section.c_str();
    size_t left = section.size();
    if (count > left / sizeof(uint64_t)) throw std::invalid_argument("there are not so many texts");
    std::unordered_set<std::string_view> texts;
    texts.reserve(count);
    std::vector<std::string> named;
    named.reserve(count);  // the views into it stay where they are
    for (size_t i = 0; i < count; ++i) {
        uint64_t length;
        if (left < sizeof length) throw std::invalid_argument("a text ends beyond the array");
        std::memcpy(&length, at, sizeof length);
        at += sizeof length, left -= sizeof length;
        if (length > left) throw std::invalid_argument("a text ends beyond the array");
        if (length == 0) {
            named.push_back("[EMPTY_" + std::to_string(i) + "]");
            texts.insert(named.back());
        } else {
            texts.emplace(at, length);
        }
        at += length, left -= length;
    }
    return texts.size();
}

}  // namespace

void bind_distinct(nb::module_& m) {
    using namespace nb::literals;
    m.def("distinct_tokens", &distinct_tokens, "section"_a, "count"_a);
}
