# The kernels: SPECX_KERNEL_SOURCES, with the flags of each file's instruction set. A file whose instruction set the
# target does not have compiles to a function that says so.
#
# Float operations are fused only where the source says so (-ffp-contract=off), so that all variants agree.
set(_dir ${CMAKE_CURRENT_LIST_DIR})
set(_names device/isa device/threads weights/pack
           matmul/matmul matmul/matmul_c matmul/kernels_generic matmul/kernels_avx2 matmul/kernels_avx_vnni
           matmul/kernels_avx512_vnni matmul/kernels_amx_int8 matmul/kernels_neon matmul/kernels_neon_i8mm
           floats/float_matmul floats/float_matmul_generic floats/float_matmul_avx2 floats/float_matmul_avx512
           floats/float_matmul_neon
           attention/attention attention/attention_c attention/attention_generic attention/attention_avx2
           attention/attention_avx512 attention/attention_neon
           layers/rows layers/rows_c layers/rows_generic layers/rows_avx2 layers/rows_avx512 layers/rows_neon)
list(TRANSFORM _names REPLACE "(.+)" "${_dir}/\\1.cpp" OUTPUT_VARIABLE SPECX_KERNEL_SOURCES)
set(SPECX_KERNEL_FOLDERS)
foreach(_folder device weights matmul floats attention experts layers)
    list(APPEND SPECX_KERNEL_FOLDERS ${_dir}/${_folder})
endforeach()

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
    foreach(_name matmul/kernels_avx2 floats/float_matmul_avx2 attention/attention_avx2 layers/rows_avx2)
        _specx_flags(${_name} ${_avx2})
    endforeach()
    include(CheckCXXCompilerFlag)
    check_cxx_compiler_flag(-mavxvnni SPECX_COMPILES_AVX_VNNI)
    check_cxx_compiler_flag(-mavx512vnni SPECX_COMPILES_AVX512_VNNI)
    check_cxx_compiler_flag(-mamx-int8 SPECX_COMPILES_AMX_INT8)
    if(SPECX_COMPILES_AVX_VNNI)
        _specx_flags(matmul/kernels_avx_vnni ${_avx2} -mavxvnni)
    endif()
    if(SPECX_COMPILES_AVX512_VNNI)
        foreach(_name matmul/kernels_avx512_vnni floats/float_matmul_avx512 attention/attention_avx512
                layers/rows_avx512)
            _specx_flags(${_name} ${_avx512})
        endforeach()
        if(SPECX_COMPILES_AMX_INT8)
            _specx_flags(matmul/kernels_amx_int8 ${_avx512} -mamx-tile -mamx-int8)
        endif()
    endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64|ARM64")
    _specx_flags(matmul/kernels_neon -march=armv8.2-a+dotprod+fp16)
    _specx_flags(matmul/kernels_neon_i8mm -march=armv8.2-a+dotprod+fp16+i8mm)
endif()
