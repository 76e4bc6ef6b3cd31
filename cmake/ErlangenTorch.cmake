# Finds torch and makes one imported target, erlangen::torch. Used by our own CMakeLists.txt, and
# installed beside erlangenConfig.cmake so that whoever links Erlangen finds torch the same way.
#
# find_package(Torch) is not used: for a CUDA torch it demands nvcc of every consumer, turns
# CMAKE_CUDA_ARCHITECTURES off, and puts absolute paths into exported targets.
#
# Sets ERLANGEN_TORCH_DIR, ERLANGEN_TORCH_VERSION ("2.11.0") and ERLANGEN_TORCH_CUDA (the CUDA
# version torch was built with, "13.0", or empty for a CPU torch).

if(TARGET erlangen::torch)
  return()
endif()

# The torch directory is the root of an unpacked LibTorch, or site-packages/torch. CMAKE_PREFIX_PATH
# may name it or its share/cmake (torch.utils.cmake_prefix_path). Failing that: the torch installed
# beside this very package, then the one that python imports.
string(REPLACE ":" ";" _erlangen_env_prefixes "$ENV{CMAKE_PREFIX_PATH}")
set(ERLANGEN_TORCH_DIR "")
foreach(_erlangen_prefix IN LISTS CMAKE_PREFIX_PATH _erlangen_env_prefixes Torch_DIR
                                  CMAKE_CURRENT_LIST_DIR)
  foreach(_erlangen_suffix "" "/../.." "/../../.." "/../../../../torch")
    set(_erlangen_candidate "${_erlangen_prefix}${_erlangen_suffix}")
    if(NOT ERLANGEN_TORCH_DIR AND EXISTS "${_erlangen_candidate}/include/ATen/ATen.h")
      get_filename_component(ERLANGEN_TORCH_DIR "${_erlangen_candidate}" ABSOLUTE)
    endif()
  endforeach()
endforeach()
if(NOT ERLANGEN_TORCH_DIR)
  unset(_erlangen_python) # find_program does not search for a variable that is set, even if empty
  if(Python_EXECUTABLE)
    set(_erlangen_python "${Python_EXECUTABLE}")
  else()
    find_program(_erlangen_python NAMES python python3 NO_CACHE)
  endif()
  if(_erlangen_python)
    execute_process(
      COMMAND "${_erlangen_python}" -c "import torch; print(torch.__path__[0])"
      OUTPUT_VARIABLE ERLANGEN_TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
endif()
if(NOT EXISTS "${ERLANGEN_TORCH_DIR}/include/ATen/ATen.h")
  message(FATAL_ERROR
    "Erlangen: no torch found. Give the directory of the python package or of an unpacked LibTorch "
    "in CMAKE_PREFIX_PATH, or put first in PATH a python that imports torch.")
endif()

# Versions. The number stands in a header (in torch/headeronly since 2.9); the CUDA version only
# in version.py (python package) or build-version (LibTorch zip).
foreach(_erlangen_header torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
  if(EXISTS "${ERLANGEN_TORCH_DIR}/include/${_erlangen_header}")
    file(READ "${ERLANGEN_TORCH_DIR}/include/${_erlangen_header}" _erlangen_text)
    if(_erlangen_text MATCHES "define TORCH_VERSION[ \\\n]+\"([0-9]+\\.[0-9]+\\.[0-9]+)")
      set(ERLANGEN_TORCH_VERSION "${CMAKE_MATCH_1}")
      break()
    endif()
  endif()
endforeach()
if(NOT ERLANGEN_TORCH_VERSION)
  message(FATAL_ERROR "Erlangen: cannot read the version of torch in ${ERLANGEN_TORCH_DIR}.")
endif()
set(ERLANGEN_TORCH_CUDA "")
set(_erlangen_torch_libs torch_cpu c10)
if(EXISTS "${ERLANGEN_TORCH_DIR}/lib/libtorch_cuda.so")
  list(APPEND _erlangen_torch_libs torch_cuda c10_cuda)
  set(ERLANGEN_TORCH_CUDA "unknown")
  if(EXISTS "${ERLANGEN_TORCH_DIR}/version.py")
    file(READ "${ERLANGEN_TORCH_DIR}/version.py" _erlangen_text)
    if(_erlangen_text MATCHES "cuda[^=\n]*= *'([0-9]+\\.[0-9]+)")
      set(ERLANGEN_TORCH_CUDA "${CMAKE_MATCH_1}")
    endif()
  elseif(EXISTS "${ERLANGEN_TORCH_DIR}/build-version")
    file(READ "${ERLANGEN_TORCH_DIR}/build-version" _erlangen_text)
    if(_erlangen_text MATCHES "\\+cu([0-9]+)([0-9])")
      set(ERLANGEN_TORCH_CUDA "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}")
    endif()
  endif()
endif()

add_library(erlangen::torch INTERFACE IMPORTED)
target_include_directories(erlangen::torch INTERFACE
  "${ERLANGEN_TORCH_DIR}/include" "${ERLANGEN_TORCH_DIR}/include/torch/csrc/api/include")
target_compile_features(erlangen::torch INTERFACE cxx_std_20)
foreach(_erlangen_lib IN LISTS _erlangen_torch_libs)
  target_link_libraries(erlangen::torch INTERFACE
    "${ERLANGEN_TORCH_DIR}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}${_erlangen_lib}${CMAKE_SHARED_LIBRARY_SUFFIX}")
endforeach()
# The CUDA runtime that torch itself loads, where it came with torch as a python package.
file(GLOB _erlangen_cudart "${ERLANGEN_TORCH_DIR}/../nvidia/*/lib/libcudart.so.*")
if(ERLANGEN_TORCH_CUDA AND _erlangen_cudart)
  list(GET _erlangen_cudart 0 ERLANGEN_TORCH_CUDART)
  get_filename_component(ERLANGEN_TORCH_CUDART "${ERLANGEN_TORCH_CUDART}" ABSOLUTE)
  target_link_libraries(erlangen::torch INTERFACE "${ERLANGEN_TORCH_CUDART}")
endif()
# Every one of them is kept, used or not: libtorch_cuda registers its kernels when it is loaded,
# and an executable's own list of libraries is where liberlangen's are looked up.
if(UNIX AND NOT APPLE)
  target_link_options(erlangen::torch INTERFACE "LINKER:--no-as-needed")
endif()
# torch before 2.7 came with either string ABI and says which.
file(STRINGS "${ERLANGEN_TORCH_DIR}/share/cmake/Torch/TorchConfig.cmake" _erlangen_text
  REGEX "D_GLIBCXX_USE_CXX11_ABI=[01]")
if(_erlangen_text MATCHES "_GLIBCXX_USE_CXX11_ABI=[01]")
  target_compile_definitions(erlangen::torch INTERFACE "${CMAKE_MATCH_0}")
endif()
