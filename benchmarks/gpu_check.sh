#!/usr/bin/env bash
# Everything that needs a GPU, in one call and under ten minutes: builds for the GPU that is there,
# runs the tests on it, compute-sanitizer over the kernels' tests, then the benchmarks. Needs torch,
# nvcc, cmake, ninja, pytest, transformers and GoogleTest already on the machine; no network. Where
# CUTLASS's headers are not a Python package there, CMAKE_ARGS says where they are.
#   benchmarks/gpu_check.sh [OUT]      results and log go to OUT (default benchmarks/results)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="$(realpath "${1:-benchmarks/results}")"
mkdir -p "$out"
failed=()
stage() {
  local name="$1"
  shift
  printf '\n== %s\n' "$name"
  "$@" 2>&1 | tee "$out/$name.log" | tail -n 25
  local status=${PIPESTATUS[0]}
  ((status == 0)) || failed+=("$name ($status)")
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || exit 1
stage build bash -c '
  set -e
  cmake -S . -B build/gpu -G Ninja -DERLANGEN_BUILD_PYTHON=ON -DERLANGEN_CUDA=ON \
    -DPython_EXECUTABLE="$(command -v python3)" ${CMAKE_ARGS:-}
  cmake --build build/gpu --target install'
export PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
stage tests python3 -m pytest -q -x --maxfail=20 -k cuda tests/python \
  --ignore tests/python/test_install.py --ignore tests/python/test_cpp_example.py
for tool in memcheck racecheck initcheck; do
  stage "sanitizer-$tool" timeout 100 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    --kernel-name-exclude kernel_substring=at:: \
    python3 -m pytest -q -x -k "cuda and float32" tests/python/test_row_norm_kernel.py \
    tests/python/test_centered_row_norm_kernel.py tests/python/test_column_norm_kernel.py
  stage "sanitizer-$tool-products" timeout 100 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    --kernel-name-exclude kernel_substring=at:: \
    python3 -m pytest -q -x -k "cuda and float16 and test_polynomial" tests/python/test_polar.py
done
stage benchmarks python3 benchmarks/steps.py --device cuda --out "$out/steps_cuda.json"

if ((${#failed[@]})); then
  printf '\nfailed: %s\n' "${failed[*]}"
  exit 1
fi
printf '\nall stages passed\n'
