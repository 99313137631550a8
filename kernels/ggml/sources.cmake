# The kernels: SPECX_KERNEL_SOURCES, with the flags of each file's instruction set. A file whose instruction set the
# target does not have compiles to a function that says so.
#
# Float operations are fused only where the source says so (-ffp-contract=off), so that all variants agree.
set(_dir ${CMAKE_CURRENT_LIST_DIR})
set(_names isa matmul pack kernels_generic kernels_avx2 kernels_avx_vnni kernels_avx512_vnni kernels_amx_int8
           kernels_neon kernels_neon_i8mm matmul_c
           float_matmul float_matmul_generic float_matmul_avx2 float_matmul_avx512 float_matmul_neon
           attention attention_generic attention_avx2 attention_avx512 attention_neon attention_c threads)
list(TRANSFORM _names REPLACE "(.+)" "${_dir}/\\1.cpp" OUTPUT_VARIABLE SPECX_KERNEL_SOURCES)

function(_specx_flags name)
    list(JOIN ARGN " " flags)
    set_source_files_properties(${_dir}/${name}.cpp PROPERTIES COMPILE_FLAGS "-ffp-contract=off ${flags}")
endfunction()

foreach(_name ${_names})
    _specx_flags(${_name})
endforeach()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
    set(_avx2 -mavx2 -mfma -mf16c)
    set(_avx512 ${_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mprefer-vector-width=512
        -Wno-uninitialized -Wno-maybe-uninitialized)  # GCC 12 gives it for its own intrinsics
    foreach(_name kernels_avx2 float_matmul_avx2 attention_avx2)
        _specx_flags(${_name} ${_avx2})
    endforeach()
    include(CheckCXXCompilerFlag)
    check_cxx_compiler_flag(-mavxvnni SPECX_COMPILES_AVX_VNNI)
    check_cxx_compiler_flag(-mavx512vnni SPECX_COMPILES_AVX512_VNNI)
    check_cxx_compiler_flag(-mamx-int8 SPECX_COMPILES_AMX_INT8)
    if(SPECX_COMPILES_AVX_VNNI)
        _specx_flags(kernels_avx_vnni ${_avx2} -mavxvnni)
    endif()
    if(SPECX_COMPILES_AVX512_VNNI)
        foreach(_name kernels_avx512_vnni float_matmul_avx512 attention_avx512)
            _specx_flags(${_name} ${_avx512})
        endforeach()
        if(SPECX_COMPILES_AMX_INT8)
            _specx_flags(kernels_amx_int8 ${_avx512} -mamx-tile -mamx-int8)
        endif()
    endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64|ARM64")
    _specx_flags(kernels_neon -march=armv8.2-a+dotprod+fp16)
    _specx_flags(kernels_neon_i8mm -march=armv8.2-a+dotprod+fp16+i8mm)
endif()
