// AMX kernels.
#include "kernels.hpp"

namespace specx {
const Kernels* amx_int8_kernels() { return nullptr; }
}  // namespace specx
