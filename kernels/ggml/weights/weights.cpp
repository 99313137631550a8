#include "weights.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>

#include <sys/resource.h>
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "matmul.hpp"
#include "packed_file.hpp"
#include "threads.hpp"

namespace specx {
namespace {

using ggml::Buffer;
using ggml::BufferType;
using ggml::Tensor;

BufferType g_type;  // one for the process: ggml keeps the pointer as long as it runs
const ggml::Functions* g_functions;

std::unique_ptr<PackedFile> g_file;  // of the model that is being loaded, if it has one
Packing g_packing;                   // of that model

struct Memory {  // the context of a Buffer
    char* base;
    size_t mapped;  // bytes, to be unmapped; 0: to be freed
};

char* base_of(const Buffer* buffer) { return static_cast<Memory*>(buffer->context)->base; }

// The file whose memory a buffer is, while its model is loaded.
PackedFile* file_of(const Buffer* buffer) {
    return g_file != nullptr && g_file->base() == base_of(buffer) ? g_file.get() : nullptr;
}

int64_t cpu_microseconds() {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return int64_t{1000000} * (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + usage.ru_utime.tv_usec +
           usage.ru_stime.tv_usec;
}

bool packable(const Tensor* tensor) { return matmul_supported(tensor->type, tensor->ne[0], tensor->ne[1]); }

size_t matrix_size(const Tensor* tensor) { return packed_size(tensor->type, tensor->ne[0], tensor->ne[1]); }

int64_t matrices(const Tensor* tensor) { return tensor->ne[2] * tensor->ne[3]; }

size_t allocated_size(const Tensor* tensor) {
    return packable(tensor) ? matrix_size(tensor) * matrices(tensor) : g_functions->nbytes(tensor);
}

constexpr size_t kSmall = 1 << 17;  // bytes: less is not worth waking threads, or looking at mappings

#ifdef __linux__

// Whether memory is a view of a file that nobody writes through: such pages can be dropped, and come back when
// they are read.
bool is_view_of_file(uintptr_t begin, uintptr_t end) {
    std::FILE* mappings = std::fopen("/proc/self/maps", "re");
    if (mappings == nullptr) return false;
    char line[4352], access[5];  // a path may have 4096 bytes
    unsigned long from = 0, to = 0, inode = 0;
    bool found = false;
    while (!found && std::fgets(line, sizeof line, mappings) != nullptr) {
        found = std::sscanf(line, "%lx-%lx %4s %*x %*s %lu", &from, &to, access, &inode) == 4 && from <= begin &&
                end <= to;
    }
    std::fclose(mappings);
    return found && access[1] == '-' && access[3] == 's' && inode != 0;
}

// llama.cpp maps the whole model file and keeps what lies between weights it uses in place: without this, weights
// would be resident twice once they are packed.
void give_back(const void* data, size_t size) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + size) / page * page;
    if (size < kSmall || begin >= end || !is_view_of_file(begin, end)) return;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

#else

void give_back(const void*, size_t) {}

#endif

// A conversion between ggml's layout (`plain`) and the packed one, of a whole tensor.
struct Conversion {
    const Tensor* tensor;
    char* plain;
    char* packed;
    bool packing;
};

void convert(void* argument, Team*, int member, int size) {
    const auto* job = static_cast<const Conversion*>(argument);
    const Tensor* t = job->tensor;
    int64_t groups = (t->ne[1] + kGroupRows - 1) / kGroupRows;
    int64_t first = groups * member / size * kGroupRows;
    int64_t end = groups * (member + 1) / size * kGroupRows;
    if (end > t->ne[1]) end = t->ne[1];
    if (first >= end) return;
    for (int64_t i = 0; i < matrices(t); ++i) {
        char* packed = job->packed + i * matrix_size(t);
        char* rows = job->plain + i * t->nb[2] + first * t->nb[1];
        if (job->packing) {
            pack(t->type, t->ne[0], t->ne[1], rows, packed, first, end - first);
        } else {
            unpack(t->type, t->ne[0], t->ne[1], packed, rows, first, end - first);
        }
    }
}

void convert_all(const Tensor* tensor, void* plain, void* packed, bool packing) {
    Conversion job = {tensor, static_cast<char*>(plain), static_cast<char*>(packed), packing};
    unsigned cores = std::thread::hardware_concurrency();
    bool small = g_functions->nbytes(tensor) < kSmall;
    team_run(small || cores == 0 ? 1 : static_cast<int>(cores), convert, &job);
}

// ggml may hand over a view: what is packed is the tensor it looks at.
const Tensor* owner_of(const Tensor* tensor, size_t* offset) {
    while (tensor->view_src != nullptr) {
        *offset += tensor->view_offs;
        tensor = tensor->view_src;
    }
    return tensor;
}

// Write or read a part: through a copy of the whole tensor in ggml's layout.
void change_part(const Tensor* tensor, const void* data, size_t offset, size_t size) {
    std::unique_ptr<char[]> plain(new char[g_functions->nbytes(tensor)]);
    convert_all(tensor, plain.get(), tensor->data, false);
    std::memcpy(plain.get() + offset, data, size);
    convert_all(tensor, plain.get(), tensor->data, true);
}

// Write a whole tensor, or find it written in the file of its model.
void set_whole(Buffer* buffer, const Tensor* tensor, const void* data) {
    const size_t size = allocated_size(tensor);
    PackedFile* file = file_of(buffer);
    if (file != nullptr && file->holds(tensor, size)) {
        g_packing.found += size;
        return;
    }
    void* packed = file != nullptr ? file->place(tensor, size) : tensor->data;
    if (packable(tensor)) {
        convert_all(tensor, const_cast<void*>(data), packed, true);
    } else {
        std::memcpy(packed, data, size);
    }
    if (file != nullptr) file->written(tensor, size);
    g_packing.packed += size;
}

void set_tensor(Buffer* buffer, Tensor* view, const void* data, size_t offset, size_t size) {
    const Tensor* tensor = owner_of(view, &offset);
    if (offset == 0 && size == g_functions->nbytes(tensor)) {
        const int64_t start = cpu_microseconds();
        set_whole(buffer, tensor, data);
        g_packing.microseconds += cpu_microseconds() - start;
    } else {
        if (PackedFile* file = file_of(buffer)) file->spoil();
        if (packable(tensor)) return change_part(tensor, data, offset, size);
        std::memcpy(static_cast<char*>(tensor->data) + offset, data, size);
    }
    give_back(data, size);
}

void get_tensor(Buffer*, const Tensor* view, void* data, size_t offset, size_t size) {
    const Tensor* tensor = owner_of(view, &offset);
    if (!packable(tensor)) {
        std::memcpy(data, static_cast<const char*>(tensor->data) + offset, size);
    } else if (offset == 0 && size == g_functions->nbytes(tensor)) {
        convert_all(tensor, data, tensor->data, false);
    } else {
        std::unique_ptr<char[]> plain(new char[g_functions->nbytes(tensor)]);
        convert_all(tensor, plain.get(), tensor->data, false);
        std::memcpy(data, plain.get() + offset, size);
    }
}

void memset_tensor(Buffer* buffer, Tensor* tensor, uint8_t value, size_t offset, size_t size) {
    std::unique_ptr<char[]> bytes(new char[size]);
    std::memset(bytes.get(), value, size);
    set_tensor(buffer, tensor, bytes.get(), offset, size);
}

void free_buffer(Buffer* buffer) {
    if (file_of(buffer) != nullptr) g_file.reset();  // loading failed, or was interrupted: the file is not whole
    auto* memory = static_cast<Memory*>(buffer->context);
#ifdef __linux__
    if (memory->mapped > 0) munmap(memory->base, memory->mapped);
#endif
    if (memory->mapped == 0) std::free(memory->base);
    delete memory;
}

void* get_base(Buffer* buffer) { return base_of(buffer); }

void clear(Buffer* buffer, uint8_t value) {
    if (PackedFile* file = file_of(buffer)) file->spoil();
    std::memset(base_of(buffer), value, buffer->size);
}

// Memory of the process's own.
char* allocate(size_t size) {
    constexpr size_t kHugePage = size_t{2} << 20;
    size_t alignment = size >= kHugePage ? kHugePage : kAlignment;
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, (size + alignment - 1) / alignment * alignment) != 0) return nullptr;
#ifdef __linux__
    if (size >= kHugePage) madvise(memory, size, MADV_HUGEPAGE);  // fewer page walks while streaming weights
#endif
    return static_cast<char*>(memory);
}

Buffer* alloc_buffer(BufferType* type, size_t size) {
    char* mapped = g_file != nullptr ? g_file->map(size) : nullptr;
    char* base = mapped != nullptr ? mapped : allocate(size);
    if (base == nullptr) return nullptr;
    ggml::BufferInterface iface = {};
    iface.free_buffer = free_buffer;
    iface.get_base = get_base;
    iface.memset_tensor = memset_tensor;
    iface.set_tensor = set_tensor;
    iface.get_tensor = get_tensor;
    iface.clear = clear;
    return g_functions->buffer_init(type, iface, new Memory{base, mapped != nullptr ? size : 0}, size);
}

const char* get_name(BufferType*) { return "specx"; }
size_t get_alignment(BufferType*) { return kAlignment; }
size_t get_alloc_size(BufferType*, const Tensor* tensor) { return allocated_size(tensor); }
bool is_host(BufferType*) { return false; }

}  // namespace

BufferType* make_weight_buffer_type(ggml::Device* device, const ggml::Functions* functions) {
    g_functions = functions;
    g_type = {};
    g_type.iface.get_name = get_name;
    g_type.iface.alloc_buffer = alloc_buffer;
    g_type.iface.get_alignment = get_alignment;
    g_type.iface.get_alloc_size = get_alloc_size;
    g_type.iface.is_host = is_host;
    g_type.device = device;
    return &g_type;
}

bool is_in_our_buffer(const Tensor* tensor) {
    return tensor->buffer != nullptr && tensor->buffer->type == &g_type;
}

bool is_packed(const Tensor* tensor) {
    return is_in_our_buffer(tensor) && tensor->view_src == nullptr && packable(tensor);
}

const void* packed_matrix(const Tensor* tensor, int64_t index) {
    return static_cast<const char*>(tensor->data) + index * matrix_size(tensor);
}

bool begin_packing(int descriptor, const char* key, bool writing) {
    g_packing = {};
    g_file.reset();
    if (descriptor < 0) return true;
    g_file = writing ? PackedFile::create(descriptor, key) : PackedFile::open(descriptor, key);
    return g_file != nullptr;
}

Packing end_packing() {
    Packing packing = g_packing;
    if (g_file != nullptr) {
        packing.complete = g_file->finish();
        if (packing.complete) packing.large_pages = g_file->large_pages();
    }
    g_file.reset();
    return packing;
}

}  // namespace specx
