// The multiplication for the tests, through ctypes: one C function each.
#include <cstdint>

#include "kernels.hpp"
#include "matmul.hpp"

#define SPECX_EXPORT extern "C" __attribute__((visibility("default")))

using specx::Isa;

SPECX_EXPORT int specx_isa_available(int isa) { return specx::isa_available(static_cast<Isa>(isa)); }
SPECX_EXPORT const char* specx_isa_name(int isa) {
    return isa >= 0 && isa < specx::kIsaCount ? specx::isa_name(static_cast<Isa>(isa)) : nullptr;
}
SPECX_EXPORT int specx_best_isa() { return static_cast<int>(specx::best_isa()); }

SPECX_EXPORT int specx_matmul_supported(int type, int64_t k, int64_t rows) {
    return specx::matmul_supported(type, k, rows);
}
SPECX_EXPORT uint64_t specx_matmul_packed_size(int type, int64_t k, int64_t rows) {
    return specx::packed_size(type, k, rows);
}
SPECX_EXPORT uint64_t specx_matmul_scratch_size(int type, int64_t k, int64_t n) {
    return specx::scratch_size(type, k, n);
}
SPECX_EXPORT void specx_matmul_pack(int type, int64_t k, int64_t rows, const void* src, void* dst, int64_t first_row,
                                    int64_t n_rows) {
    specx::pack(type, k, rows, src, dst, first_row, n_rows);
}
SPECX_EXPORT void specx_matmul_unpack(int type, int64_t k, int64_t rows, const void* src, void* dst,
                                      int64_t first_row, int64_t n_rows) {
    specx::unpack(type, k, rows, src, dst, first_row, n_rows);
}
SPECX_EXPORT void specx_matmul_quantize(int isa, int type, int64_t k, int64_t n, const float* x, uint64_t stride,
                                        void* scratch, int ith, int nth) {
    specx::quantize_rows(static_cast<Isa>(isa), type, k, n, x, stride, scratch, ith, nth);
}
SPECX_EXPORT void specx_matmul_join(int isa, int type, int64_t k, int64_t n, const void* const* rows, void* scratch) {
    specx::join_rows(static_cast<Isa>(isa), type, k, n, rows, scratch);
}
SPECX_EXPORT void specx_matmul_multiply(int isa, int type, int64_t k, int64_t rows, int64_t n, const void* packed,
                                        const void* scratch, float* out, uint64_t stride, int ith, int nth) {
    specx::multiply(static_cast<Isa>(isa), type, k, rows, n, packed, scratch, out, stride, ith, nth);
}
