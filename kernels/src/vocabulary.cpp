// What libllama says of the tokens of a vocabulary, of all of them at once: through ctypes a call for each of
// 262,144 takes a tenth of a second.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <vector>

namespace nb = nanobind;

namespace {

// The function is llama_vocab_is_eog, the vocabulary what it takes.
std::vector<int32_t> ending_tokens(uintptr_t function, uintptr_t vocabulary, int32_t count) {
    const auto ends = reinterpret_cast<bool (*)(const void*, int32_t)>(function);
    std::vector<int32_t> found;
    for (int32_t token = 0; token < count; ++token)
        if (ends(reinterpret_cast<const void*>(vocabulary), token)) found.push_back(token);
    return found;
}

// The function is llama_vocab_get_attr.
std::vector<int32_t> tokens_of_kind(uintptr_t function, uintptr_t vocabulary, int32_t count, uint32_t kinds) {
    const auto kind_of = reinterpret_cast<uint32_t (*)(const void*, int32_t)>(function);
    std::vector<int32_t> found;
    for (int32_t token = 0; token < count; ++token)
        if (kind_of(reinterpret_cast<const void*>(vocabulary), token) & kinds) found.push_back(token);
    return found;
}

}  // namespace

void bind_vocabulary(nb::module_& m) {
    using namespace nb::literals;
    m.def("ending_tokens", &ending_tokens, "function"_a, "vocabulary"_a, "count"_a);
    m.def("tokens_of_kind", &tokens_of_kind, "function"_a, "vocabulary"_a, "count"_a, "kinds"_a);
}
