// The Arm kernels with the matrix instructions.
#define SPECX_I8MM 1
#include "kernels_neon.cpp"
