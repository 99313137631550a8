#include "packed_file.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#ifdef __linux__
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#endif

#include "threads.hpp"

namespace specx {
#ifdef __linux__
namespace {

constexpr char kMagic[] = "specxpk1";
constexpr size_t kLargePage = size_t{2} << 20;
constexpr size_t kPiece = size_t{1} << 20;  // bytes that one thread takes a checksum of

size_t down(size_t offset) { return offset / kLargePage * kLargePage; }
size_t up(size_t offset) { return down(offset + kLargePage - 1); }

// A checksum: a change of one word always changes it. Eight words at a time, which is as fast as memory.
uint64_t sum_of(const void* data, size_t size) {
    constexpr uint64_t kFactor = 0x9e3779b97f4a7c15;
    auto mixed = [](uint64_t sum, uint64_t word) {
        sum = (sum ^ word) * kFactor;
        return sum << 29 | sum >> 35;
    };
    const char* bytes = static_cast<const char*>(data);
    uint64_t sums[8] = {1, 2, 3, 4, 5, 6, 7, 8}, words[8] = {};
    for (; size >= sizeof words; bytes += sizeof words, size -= sizeof words) {
        std::memcpy(words, bytes, sizeof words);
        for (int i = 0; i < 8; ++i) sums[i] = mixed(sums[i], words[i]);
    }
    std::memset(words, 0, sizeof words);
    if (size > 0) std::memcpy(words, bytes, size);
    uint64_t sum = size;
    for (int i = 0; i < 8; ++i) sum = mixed(sum, mixed(sums[i], words[i]));
    return sum;
}

struct Pieces {
    const char* data;
    size_t size;
    std::vector<uint64_t> sums;
};

void sum_pieces(void* argument, Team*, int member, int size) {
    auto* job = static_cast<Pieces*>(argument);
    const size_t pieces = job->sums.size();
    for (size_t i = pieces * member / size; i < pieces * (member + 1) / size; ++i) {
        job->sums[i] = sum_of(job->data + i * kPiece, std::min(kPiece, job->size - i * kPiece));
    }
}

// The same by all threads; `size` is more than 0.
uint64_t sum_together(const char* data, size_t size) {
    Pieces job = {data, size, std::vector<uint64_t>((size + kPiece - 1) / kPiece)};
    const unsigned cores = std::thread::hardware_concurrency();
    team_run(job.sums.size() < 2 || cores == 0 ? 1 : static_cast<int>(cores), sum_pieces, &job);
    return sum_of(job.sums.data(), job.sums.size() * sizeof job.sums[0]);
}

}  // namespace

PackedFile::PackedFile(int descriptor, const char* key, bool writing) : descriptor_(descriptor), writing_(writing) {
    std::memcpy(key_, key, kKeySize);
}

PackedFile::~PackedFile() { std::free(window_); }

std::unique_ptr<PackedFile> PackedFile::open(int descriptor, const char* key) {
    std::unique_ptr<PackedFile> file(new PackedFile(descriptor, key, false));
    return file->read() ? std::move(file) : nullptr;
}

std::unique_ptr<PackedFile> PackedFile::create(int descriptor, const char* key) {
    struct statfs where;
    if (fstatfs(descriptor, &where) != 0) return nullptr;
    const auto kind = static_cast<unsigned long>(where.f_type);
    if (kind == TMPFS_MAGIC || kind == RAMFS_MAGIC) return nullptr;
    return std::unique_ptr<PackedFile>(new PackedFile(descriptor, key, true));
}

PackedFile::Footer PackedFile::footer() const {
    Footer footer = {};
    std::memcpy(footer.magic, kMagic, sizeof footer.magic);
    std::memcpy(footer.key, key_, kKeySize);
    footer.data_size = size_;
    footer.records = records_.size();
    footer.records_sum = sum_of(records_.data(), records_.size() * sizeof(Record));
    footer.sum = sum_of(&footer, offsetof(Footer, sum));
    return footer;
}

// Read the records, if the file is whole and has the key.
bool PackedFile::read() {
    Footer found;
    struct stat status;
    if (fstat(descriptor_, &status) != 0 || status.st_size < static_cast<off_t>(sizeof found)) return false;
    const size_t end = status.st_size - sizeof found;
    if (pread(descriptor_, &found, sizeof found, end) != static_cast<ssize_t>(sizeof found)) return false;
    const size_t most = end / sizeof(Record);
    if (found.records > most || found.data_size != end - found.records * sizeof(Record)) return false;
    size_ = found.data_size;
    records_.resize(found.records);
    const size_t bytes = records_.size() * sizeof(Record);
    if (pread(descriptor_, records_.data(), bytes, size_) != static_cast<ssize_t>(bytes)) return false;
    const Footer right = footer();
    return std::memcmp(&right, &found, sizeof right) == 0;
}

bool PackedFile::reserve(size_t size) {
    const off_t room = size + (size_t{1} << 20);  // the records take less
    return fallocate(descriptor_, 0, 0, room) == 0;
}

char* PackedFile::map(size_t size) {
    if (size == 0 || base_ != nullptr || (writing_ ? !reserve(size) : size != size_)) return nullptr;
    // A large page has to begin at a multiple of its size in memory, too.
    void* room = mmap(nullptr, size + kLargePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) return nullptr;
    char* begin = static_cast<char*>(room);
    char* aligned = reinterpret_cast<char*>(up(reinterpret_cast<uintptr_t>(room)));
    void* memory = mmap(aligned, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, descriptor_, 0);
    if (memory == MAP_FAILED) {
        munmap(room, size + kLargePage);
        return nullptr;
    }
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    char* end = aligned + (size + page - 1) / page * page;
    if (aligned > begin) munmap(begin, aligned - begin);
    if (begin + size + kLargePage > end) munmap(end, begin + size + kLargePage - end);
    madvise(memory, size, MADV_HUGEPAGE);  // what is not in memory is read into large pages
    size_ = size;
    return base_ = aligned;
}

PackedFile::Record PackedFile::record_of(const ggml::Tensor* tensor, size_t size, uint64_t sum) const {
    Record record = {};
    std::strncpy(record.name, tensor->name, sizeof record.name);
    record.type = tensor->type;
    std::copy(tensor->ne, tensor->ne + 4, record.ne);
    record.offset = static_cast<char*>(tensor->data) - base_;
    record.size = size;
    record.sum = sum;
    return record;
}

bool PackedFile::holds(const ggml::Tensor* tensor, size_t size) const {
    if (writing_ || failed_ || size == 0) return false;
    const Record wanted = record_of(tensor, size, 0);
    for (const Record& record : records_) {
        if (std::memcmp(&record, &wanted, offsetof(Record, sum)) != 0) continue;
        return sum_together(base_ + record.offset, size) == record.sum;
    }
    return false;
}

bool PackedFile::write(const void* data, size_t size, size_t offset) const {
    const char* bytes = static_cast<const char*>(data);
    while (size > 0) {
        const size_t piece = std::min(size, down(offset) + kLargePage - offset);  // in one large page
        const ssize_t done = pwrite(descriptor_, bytes, piece, static_cast<off_t>(offset));
        if (done <= 0) return false;
        bytes += done, offset += done, size -= done;
    }
    return true;
}

// Write what is in the window up to `end`. What cannot be written is put into the memory instead.
void PackedFile::flush(size_t end) {
    if (end <= from_) return;
    const char* data = window_ + (from_ - begin_);
    if (!failed_ && !write(data, end - from_, from_)) failed_ = true;
    if (failed_) std::memcpy(base_ + from_, data, end - from_);
    from_ = end;
}

char* PackedFile::place(const ggml::Tensor* tensor, size_t size) {
    const size_t offset = static_cast<char*>(tensor->data) - base_;
    if (!writing_ || failed_) return base_ + offset;
    if (offset < to_ || offset - to_ >= kLargePage) {  // not the next one
        flush(to_);
        begin_ = down(offset), from_ = to_ = offset;
    }
    const size_t needed = up(offset + size - begin_);
    if (needed > capacity_) {
        void* larger = nullptr;
        if (posix_memalign(&larger, kLargePage, needed) != 0) {
            flush(to_);
            failed_ = true;
            return base_ + offset;
        }
        madvise(larger, needed, MADV_HUGEPAGE);
        const size_t kept = from_ - begin_;
        if (to_ > from_) std::memcpy(static_cast<char*>(larger) + kept, window_ + kept, to_ - from_);
        std::free(window_);
        window_ = static_cast<char*>(larger), capacity_ = needed;
    }
    std::memset(window_ + (to_ - begin_), 0, offset - to_);  // the gap before it
    to_ = offset;
    return window_ + (offset - begin_);
}

void PackedFile::written(const ggml::Tensor* tensor, size_t size) {
    if (!writing_ || failed_) return;
    const size_t offset = static_cast<char*>(tensor->data) - base_;
    records_.push_back(record_of(tensor, size, sum_together(window_ + (offset - begin_), size)));
    to_ = offset + size;
    const size_t end = down(to_);
    flush(end);
    if (end > begin_) {
        std::memmove(window_, window_ + (end - begin_), to_ - end);
        begin_ = end;
    }
}

void PackedFile::spoil() {
    if (writing_) flush(to_);
    failed_ = true;
}

bool PackedFile::finish() {
    if (!writing_ || base_ == nullptr) return false;
    flush(to_);
    const size_t bytes = records_.size() * sizeof(Record);
    const Footer last = footer();
    const bool whole = !failed_ && !records_.empty() && write(records_.data(), bytes, size_) &&
                       write(&last, sizeof last, size_ + bytes) &&
                       ftruncate(descriptor_, static_cast<off_t>(size_ + bytes + sizeof last)) == 0;
    writing_ = false, failed_ = true;  // nothing is looked up in it: it is in memory
    std::free(window_);
    window_ = nullptr;
    return whole;
}

size_t PackedFile::large_pages() const {
    for (size_t i = 0; i < size_; i += kLargePage) static_cast<void>(*static_cast<volatile char*>(base_ + i));
    std::FILE* mappings = std::fopen("/proc/self/smaps", "re");
    if (mappings == nullptr) return 0;
    char line[4352];
    unsigned long from = 0, to = 0, kilobytes = 0, total = 0;
    const auto begin = reinterpret_cast<uintptr_t>(base_);
    bool inside = false;
    while (std::fgets(line, sizeof line, mappings) != nullptr) {
        if (std::sscanf(line, "%lx-%lx ", &from, &to) == 2) inside = begin <= from && from < begin + size_;
        if (inside && std::sscanf(line, "FilePmdMapped: %lu kB", &kilobytes) == 1) total += kilobytes;
    }
    std::fclose(mappings);
    return total << 10;
}

#else  // other systems have no large pages for files

PackedFile::PackedFile(int descriptor, const char*, bool writing) : descriptor_(descriptor), writing_(writing) {}
PackedFile::~PackedFile() = default;
std::unique_ptr<PackedFile> PackedFile::open(int, const char*) { return nullptr; }
std::unique_ptr<PackedFile> PackedFile::create(int, const char*) { return nullptr; }
char* PackedFile::map(size_t) { return nullptr; }
bool PackedFile::holds(const ggml::Tensor*, size_t) const { return false; }
char* PackedFile::place(const ggml::Tensor* tensor, size_t) { return static_cast<char*>(tensor->data); }
void PackedFile::written(const ggml::Tensor*, size_t) {}
void PackedFile::spoil() {}
bool PackedFile::finish() { return false; }
size_t PackedFile::large_pages() const { return 0; }

#endif

}  // namespace specx
