// The texts of a vocabulary as bytes: found by their bytes, by what they begin with, and in another vocabulary.
//
// Two vocabularies are compared in every process that drafts with a model of another family, so this takes
// milliseconds for 262,144 tokens. kernels/reference/pieces.py says the same in dictionaries.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Ints = nb::ndarray<nb::numpy, int32_t, nb::ndim<1>>;

Ints array_of(const std::vector<int32_t>& values) {
    auto* data = new int32_t[values.size() + 1];
    std::copy(values.begin(), values.end(), data);
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<int32_t*>(p); });
    return Ints(data, {values.size()}, owner);
}

class Pieces {
  public:
    explicit Pieces(const std::vector<nb::bytes>& texts) {
        for (const nb::bytes& text : texts) add(text.c_str(), text.size());
        index();
    }

    // The function is llama_token_to_piece, the vocabulary what it takes; control tokens have no bytes.
    Pieces(uintptr_t function, uintptr_t vocabulary, int32_t count) {
        using Lookup = int32_t (*)(const void*, int32_t, char*, int32_t, int32_t, bool);
        const auto look_up = reinterpret_cast<Lookup>(function);
        const auto* vocab = reinterpret_cast<const void*>(vocabulary);
        std::string buffer(256, '\0');
        for (int32_t token = 0; token < count; ++token) {
            int32_t n = look_up(vocab, token, buffer.data(), int32_t(buffer.size()), 0, false);
            if (n < 0) {
                buffer.resize(size_t(-n));
                n = look_up(vocab, token, buffer.data(), int32_t(buffer.size()), 0, false);
            }
            add(buffer.data(), size_t(std::max(n, 0)));
        }
        index();
    }

    size_t size() const { return ends_.size(); }

    std::string_view view(int32_t token) const {
        const size_t i = size_t(token), begin = i == 0 ? 0 : ends_[i - 1];
        return std::string_view(blob_).substr(begin, ends_[i] - begin);
    }

    nb::bytes piece(int32_t token) const {
        if (token < 0 || size_t(token) >= size()) throw nb::index_error("no such token");
        const std::string_view text = view(token);
        return nb::bytes(text.data(), text.size());
    }

    // The lowest token with these bytes, -1 if there is none.
    int32_t find(std::string_view text) const {
        const auto at = tokens_.find(text);
        return at == tokens_.end() ? -1 : at->second;
    }

    int32_t find_bytes(const nb::bytes& text) const { return find({text.c_str(), text.size()}); }

    // For each token the one of `other` with the same bytes, -1 if there is none.
    Ints match(const Pieces& other) const {
        std::vector<int32_t> found(size());
        for (size_t i = 0; i < size(); ++i) {
            const std::string_view text = view(int32_t(i));
            found[i] = text.empty() ? -1 : other.find(text);
        }
        return array_of(found);
    }

    // Tokens that begin with these bytes and go on.
    Ints longer(const nb::bytes& text) {
        sort();
        const std::string_view start(text.c_str(), text.size());
        const auto less = [&](int32_t token, std::string_view t) { return view(token) < t; };
        auto at = std::lower_bound(sorted_.begin(), sorted_.end(), start, less);
        std::vector<int32_t> found;
        for (; at != sorted_.end() && view(*at).substr(0, start.size()) == start; ++at)
            if (view(*at).size() > start.size()) found.push_back(*at);
        return array_of(found);
    }

  private:
    void add(const char* text, size_t n) {
        blob_.append(text, n);
        ends_.push_back(blob_.size());
    }

    void index() {
        tokens_.reserve(size());
        for (size_t i = 0; i < size(); ++i) {
            const std::string_view text = view(int32_t(i));
            if (!text.empty()) tokens_.emplace(text, int32_t(i));
        }
    }

    void sort() {
        if (sorted_.size() == size()) return;
        sorted_.resize(size());
        std::iota(sorted_.begin(), sorted_.end(), 0);
        std::sort(sorted_.begin(), sorted_.end(), [&](int32_t a, int32_t b) {
            const int order = view(a).compare(view(b));
            return order < 0 || (order == 0 && a < b);
        });
    }

    std::string blob_;
    std::vector<size_t> ends_;
    std::unordered_map<std::string_view, int32_t> tokens_;  // views into the blob, which grows no more
    std::vector<int32_t> sorted_;                           // by bytes, once that is needed
};

}  // namespace

void bind_pieces(nb::module_& m) {
    nb::class_<Pieces>(m, "Pieces")
        .def(nb::init<const std::vector<nb::bytes>&>(), "texts"_a)
        .def(nb::init<uintptr_t, uintptr_t, int32_t>(), "function"_a, "vocabulary"_a, "count"_a)
        .def("__len__", &Pieces::size)
        .def("piece", &Pieces::piece, "token"_a)
        .def("find", &Pieces::find_bytes, "text"_a)
        .def("match", &Pieces::match, "other"_a)
        .def("longer", &Pieces::longer, "text"_a);
}
