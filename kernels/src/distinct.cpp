// Arrays of texts in GGUF files: where they end, and how many of the texts differ. Every start goes through those
// of the vocabulary, 262,144 tokens and 500,000 merges.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace nb = nanobind;

namespace {

// Reads texts one behind the other, each behind its length.
class Texts {
  public:
    Texts(const char* at, size_t left) : at_(at), left_(left) {}

    // False if the next one ends beyond the data; `length` is then what it would have been.
    bool next(std::string_view* text) {
        length = 0;
        if (left_ < sizeof length) return false;
        std::memcpy(&length, at_, sizeof length);
        if (length > left_ - sizeof length) return false;
        *text = {at_ + sizeof length, static_cast<size_t>(length)};
        at_ += sizeof length + length, left_ -= sizeof length + length;
        return true;
    }

    size_t left() const { return left_; }

    uint64_t length = 0;

  private:
    const char* at_;
    size_t left_;
};

std::pair<int64_t, uint64_t> end_of_texts(const nb::bytes& data, size_t start, size_t count) {
    if (start > data.size()) return {-1, 0};
    Texts texts(data.c_str() + start, data.size() - start);
    std::string_view text;
    for (size_t i = 0; i < count; ++i)
        if (!texts.next(&text)) return {-1, texts.length};
    return {static_cast<int64_t>(data.size() - texts.left()), 0};
}

uint64_t hash_of(std::string_view text) {
    uint64_t hash = text.size();
    for (size_t i = 0; i < text.size(); i += sizeof hash) {
        uint64_t part = 0;
        std::memcpy(&part, text.data() + i, std::min(sizeof part, text.size() - i));
        hash = (hash ^ part) * 0x9fb21c651e98df25u;
        hash ^= hash >> 32;
    }
    return hash * 0x9e3779b97f4a7c15u;
}

size_t distinct_sorted(std::vector<std::string_view> texts) {
    std::sort(texts.begin(), texts.end());
    return static_cast<size_t>(std::unique(texts.begin(), texts.end()) - texts.begin());
}

// In a table of twice as many places or more. Places far apart are looked at one after the other, so each is fetched
// ahead. A file can be made of texts that all fall on the same place: where they are looked for longer than others
// ever are, they are sorted instead.
size_t distinct_of(const std::vector<std::string_view>& texts) {
    constexpr size_t kMostProbes = 16;  // of a text on average; a good table takes 1.5
    constexpr size_t kAhead = 16;       // texts
    struct Place {
        uint32_t hash;
        uint32_t text;  // its number and 1; 0 of a free place
    };
    size_t places = 16, distinct = 0, probes = 0;
    while (places < 2 * texts.size()) places *= 2;
    std::vector<uint64_t> hashes(texts.size());
    std::transform(texts.begin(), texts.end(), hashes.begin(), hash_of);
    const auto place_of = [&](size_t text) { return static_cast<size_t>(hashes[text] >> 20) & (places - 1); };
    std::vector<Place> table(places, Place{0, 0});
    for (size_t text = 0; text < texts.size(); ++text) {
        if (text + kAhead < texts.size()) __builtin_prefetch(&table[place_of(text + kAhead)]);
        const auto hash = static_cast<uint32_t>(hashes[text]);
        size_t i = place_of(text);
        while (table[i].text != 0 && !(table[i].hash == hash && texts[table[i].text - 1] == texts[text])) {
            if (++probes > kMostProbes * texts.size()) return distinct_sorted(texts);
            i = (i + 1) & (places - 1);
        }
        if (table[i].text != 0) continue;
        table[i] = {hash, static_cast<uint32_t>(text + 1)};
        ++distinct;
    }
    return distinct;
}

// As llama.cpp reads them: token i without a text is called [EMPTY_i].
size_t distinct_tokens(const nb::bytes& section, size_t count) {
    if (count > section.size() / sizeof(uint64_t)) throw std::invalid_argument("there are not so many texts");
    Texts source(section.c_str(), section.size());
    std::vector<std::string_view> texts(count);
    std::deque<std::string> named;  // the views into it stay where they are
    for (size_t i = 0; i < count; ++i) {
        if (!source.next(&texts[i])) throw std::invalid_argument("a text ends beyond the array");
        if (texts[i].empty()) texts[i] = named.emplace_back("[EMPTY_" + std::to_string(i) + "]");
    }
    return distinct_of(texts);
}

}  // namespace

void bind_distinct(nb::module_& m) {
    using namespace nb::literals;
    m.def("distinct_tokens", &distinct_tokens, "section"_a, "count"_a);
    m.def("end_of_texts", &end_of_texts, "data"_a, "start"_a, "count"_a);
}
