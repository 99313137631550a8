// A file with the packed weights of one model: written while the model is loaded, mapped when it is loaded again.
//
// The weights come first, as they lie in the buffer, so that each 2 MiB of them can be one large page. Behind them
// are a record of each tensor, with a checksum, and a footer with the key that says what the weights are of.
//
// The buffer is always a private mapping: what is written to its memory stays in this process. So whatever is wrong
// with the file, weights are packed into the buffer as if it were ordinary memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ggml_abi.hpp"

namespace specx {

constexpr size_t kKeySize = 64;

class PackedFile {
  public:
    // A file with the weights of `key`, or null if it does not hold them. `descriptor` stays the caller's.
    static std::unique_ptr<PackedFile> open(int descriptor, const char* key);

    // An empty file that is to hold the weights of `key`, or null if it lies in memory.
    static std::unique_ptr<PackedFile> create(int descriptor, const char* key);

    ~PackedFile();

    // Memory of `size` bytes for the weights, to be unmapped by the caller; null if the file has no room for them,
    // or weights of another size.
    char* map(size_t size);

    char* base() const { return base_; }

    // Whether the packed weights of `tensor`, `size` bytes, are in memory already, as they were written.
    bool holds(const ggml::Tensor* tensor, size_t size) const;

    // Where `size` bytes of packed weights are to be put that shall lie at `tensor->data`: followed by `written`.
    char* place(const ggml::Tensor* tensor, size_t size);
    void written(const ggml::Tensor* tensor, size_t size);

    // Something else is written to the memory: the file cannot be kept.
    void spoil();

    // Write what is still to be written; whether the file is complete.
    bool finish();

    // Bytes of the memory that are on large pages.
    size_t large_pages() const;

  private:
    struct Record {
        char name[64];
        int64_t type;
        int64_t ne[4];
        uint64_t offset, size, sum;
    };
    struct Footer {
        char magic[8];
        char key[kKeySize];
        uint64_t data_size, records, records_sum, sum;
    };

    PackedFile(int descriptor, const char* key, bool writing);
    bool read();
    Record record_of(const ggml::Tensor* tensor, size_t size, uint64_t sum) const;
    Footer footer() const;
    bool reserve(size_t size);
    bool write(const void* data, size_t size, size_t offset) const;
    void flush(size_t end);

    const int descriptor_;
    bool writing_, failed_ = false;
    char key_[kKeySize];
    char* base_ = nullptr;
    size_t size_ = 0;
    std::vector<Record> records_;
    // Of the file, from_ to to_ are in the window, which begins at the multiple begin_ of a large page.
    char* window_ = nullptr;
    size_t capacity_ = 0, begin_ = 0, from_ = 0, to_ = 0;
};

}  // namespace specx
