#!/usr/bin/env bash
# Everything that needs a GPU, in one call and under ten minutes: builds for the GPU that is there,
# runs the tests that need one, the benchmarks, and compute-sanitizer over every kernel.
#
#   benchmarks/gpu_check.sh [OUT]      logs and results go to OUT (default benchmarks/results), to
#                                      OUT/stages.txt what became of each stage
#
# Every stage has time of its own, and what those before it left over; none takes from the next.
#
# Needs torch, nvcc, compute-sanitizer, cmake, ninja, pytest 8.2 and transformers on the machine; no
# network. With pytest-xdist the tests run in eight processes. Test files that need a package which
# is not there fail, and the others run. CUTLASS's headers, for the wgmma kernels, are those of the
# Python package nvidia-cutlass, or CMAKE_ARGS=-DERLANGEN_CUTLASS_INCLUDE_DIR=... says where they
# lie. To bring them along: pip download --no-deps nvidia-cutlass==4.2.0.0, and of the wheel the
# folder cutlass_library/source/include. GoogleTest is not needed: no C++ test runs a kernel on the
# GPU. Python's do, through steps and functions; which of them take which kernel says `kernels`,
# below.
#   STAGES="build tests benchmarks sanitizer" by default; name fewer to repeat some. "collect" only
#   looks whether there is a test for every kernel, and needs no GPU.
#   LIMIT=585 seconds for all stages.
#
# A kernel that differs from its reference fails its tests, where a user's step would go on without
# it. On Hopper symmetric products are tried twice: as they are by default, and with wgmma's kernel,
# which ERLANGEN_WGMMA=1 takes and which is the default of a later version once this has passed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
out="${1:-benchmarks/results}"
mkdir -p "$out" && out="$(realpath "$out")" || exit 1
stages=" ${STAGES:-build tests benchmarks sanitizer} "
needs_gpu=(-m skipif) # the tests that are skipped without one
# This tree's own build; "collect" builds none and takes the package that is installed.
[ "$stages" = " collect " ] || export PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
failed=()

# What is each stage's own of LIMIT, in percent. Most valuable first, and in this order they run.
limit="${LIMIT:-585}"
declare -A share=(
  [build]=30 [report]=4 [tests]=13
  [steps]=10 [polar]=8 [train_step]=9
  [tests-wgmma]=5 [polar-wgmma]=5
  [sanitizer-tests]=4 [sanitizer-memcheck]=4 [sanitizer-racecheck]=4 [sanitizer-initcheck]=4
)
wanted() { [[ $stages == *" $1 "* ]]; }
wanted build || unset 'share[build]'
wanted tests || unset 'share[report]' 'share[tests]' 'share[tests-wgmma]'
wanted benchmarks || unset 'share[steps]' 'share[polar]' 'share[train_step]' 'share[polar-wgmma]'
wanted sanitizer || unset 'share[sanitizer-'{tests,memcheck,racecheck,initcheck}']'

# Written as it happens, so that it is there should this script itself be cut off.
note() { printf '%4d s  %s\n' "$SECONDS" "$*" | tee -a "$out/stages.txt"; }

stage() { # NAME COMMAND...
  local name="$1" begin=$SECONDS seconds=$((limit - SECONDS)) other status outcome
  shift
  unset "share[$name]"
  for other in "${share[@]}"; do seconds=$((seconds - limit * other / 100)); done
  ((seconds > 0)) || seconds=1 # to timeout, 0 is no limit
  note "$name: begins, has $seconds s"
  # Interrupted, pytest still says what it has found.
  timeout --signal=INT --kill-after=5 "$seconds" "$@" >"$out/$name.log" 2>&1
  status=$?
  tail -n 25 "$out/$name.log"
  case $status in
    0) outcome="passed" ;;
    124 | 137) outcome="cut off" ;;
    *) outcome="failed ($status)" ;;
  esac
  note "$name: $outcome after $((SECONDS - begin)) s"
  ((status == 0)) || failed+=("$name: $outcome")
  return "$status"
}

# Tests of every kernel that are quick under compute-sanitizer: kernel, file, expression.
kernels=(
  "row_norm | test_row_norm_kernel.py | test_sizes or test_strides or test_writes_nothing or test_strided_stacks or (test_kernel_and_reference and nesterov and float32-auto and not 70000)"
  "centered_row_norm | test_centered_row_norm_kernel.py | test_oracle or test_strides"
  "column_norm | test_column_norm_kernel.py | test_sizes or test_strides or test_writes_nothing or test_many or (test_oracle and float32 and (4200 or 600))"
  "polar_update | test_polar_update_kernel.py | test_sizes or test_layouts or test_writes_nothing or (test_momentum_and_parameter and float32)"
  "polar_iteration | test_polar.py | test_polynomial_of_batches and True and not 1024"
  "symmetric_product | test_symmetric_product.py | test_kernels_for_matrices_that_commute and 129 or test_kernels_for_gram_matrices and 200"
  "symmetric_product_sm90 | test_symmetric_product.py | test_kernels_for_matrices_that_commute and 264 or test_kernels_for_gram_matrices and 264"
  "mirror_lower | test_polar.py | test_small_integers_are_exact and float32"
)

# Writes the tests of all kernels to a file; fails where a kernel is not above, or has none.
collect() {
  local line kernel file expression ids names=""
  : >"$1"
  for line in "${kernels[@]}"; do
    IFS='|' read -r kernel file expression <<<"$line"
    ids="$(python3 -m pytest -q --collect-only "${needs_gpu[@]}" -k "$expression" \
      "tests/python/${file// /}" | grep ::)"
    printf '%s: %d tests\n' "${kernel// /}" "$(grep -c :: <<<"$ids")"
    [ -n "$ids" ] || return 1
    printf '%s\n' "$ids" >>"$1"
    names+="${kernel// /}|"
  done
  for file in kernels/cuda/*.cu; do
    file="$(basename "$file" .cu)"
    [[ ${file%_finish} =~ ^(${names%|})$ ]] || { echo "$file: not among the kernels"; return 1; }
  done
}

# One process for all kernels, because torch takes long to start under the sanitizer. Memory is
# allocated anew each time: inside of torch's cache an access beyond a tensor is none beyond the
# allocation, and all of it has once been written.
sanitize() {
  local tool="$1"
  shift
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    --print-limit 20 "$@" python3 -m pytest -q -x -p no:cacheprovider "@$out/sanitizer_tests.txt"
}

# Without a filter, for a kernel that is not watched writes nothing that this tool knows of; so it
# may say something of other people's kernels, which is no failure.
initcheck() {
  sanitize initcheck
  local status=$?
  ((status == 9)) || return "$status"
  ! grep -A 4 'Uninitialized' "$out/sanitizer-initcheck.log" | grep -q erlangen
}
export -f sanitize initcheck
export out

if [ "$stages" = " collect " ]; then
  collect "$out/sanitizer_tests.txt"
  exit
fi
: >"$out/stages.txt"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee -a "$out/stages.txt" || exit 1
python3 -c 'import torch; torch.cuda.current_device()' || exit 1

if wanted build; then
  # shellcheck disable=SC2016
  if ! stage build bash -c '
    set -e
    cmake -S . -B build/gpu -G Ninja -DERLANGEN_BUILD_PYTHON=ON -DERLANGEN_CUDA=ON \
      -DPython_EXECUTABLE="$(command -v python3)" ${CMAKE_ARGS:-}
    cmake --build build/gpu --target install
    python3 -c "from erlangen._build import INFO; print(INFO)"'; then
    # What an earlier call built must not pass for this tree.
    for name in "${!share[@]}"; do note "$name: left out, there is no build"; done
    exit 1
  fi
  note "build: $(tail -n 1 "$out/build.log")" # whether wgmma kernels are in it
fi
# Wgmma's stages come last: a kernel that hangs is cut off, but what becomes of the GPU is unsure.
wgmma=()
if python3 -c 'import sys, torch
from erlangen._build import INFO
sys.exit(not (INFO["wgmma"] and torch.cuda.get_device_capability() == (9, 0)))'; then
  wgmma=(env ERLANGEN_WGMMA=1)
else
  unset 'share[tests-wgmma]' 'share[polar-wgmma]'
  note "no wgmma kernel in this build, or no Hopper: its stages are left out"
fi
export ERLANGEN_SELF_CHECK=1
if wanted tests; then
  stage report python3 -m erlangen
  workers=()
  python3 -c 'import xdist' 2>/dev/null && workers=(-n 8)
  # The kernels' own first, should time run out.
  mapfile -t first < <(printf '%s\n' "${kernels[@]}" | awk '{print "tests/python/" $3}' | sort -u)
  mapfile -t others < <(printf '%s\n' "${first[@]}" tests/python/test_*.py | sort | uniq -u)
  stage tests env OMP_NUM_THREADS=2 python3 -m pytest -q --maxfail 40 \
    --continue-on-collection-errors "${needs_gpu[@]}" "${workers[@]}" "${first[@]}" "${others[@]}"
fi
if wanted benchmarks; then
  for name in steps polar train_step; do
    # shellcheck disable=SC2086
    stage "$name" python3 "benchmarks/$name.py" --device cuda ${BENCHMARK_ARGS:-} \
      --out "$out/${name}_cuda.json"
  done
fi
if wanted tests && ((${#wgmma[@]})); then
  stage tests-wgmma "${wgmma[@]}" python3 -m pytest -q --maxfail 40 "${needs_gpu[@]}" \
    tests/python/test_{self_check,symmetric_product,polar}.py
fi
if wanted benchmarks && ((${#wgmma[@]})); then
  # shellcheck disable=SC2086
  stage polar-wgmma "${wgmma[@]}" python3 benchmarks/polar.py --device cuda ${BENCHMARK_ARGS:-} \
    --out "$out/polar_wgmma_cuda.json"
fi
if wanted sanitizer; then
  # It watches the kernels themselves; small products go through mma.sync with wgmma's too.
  ((${#wgmma[@]})) && export ERLANGEN_WGMMA=1
  export ERLANGEN_SELF_CHECK=0
  if stage sanitizer-tests env STAGES=collect benchmarks/gpu_check.sh "$out"; then
    stage sanitizer-memcheck bash -c 'sanitize memcheck --kernel-name kns=erlangen'
    stage sanitizer-racecheck bash -c 'sanitize racecheck --kernel-name kns=erlangen'
    stage sanitizer-initcheck bash -c initcheck
  else
    for name in "${!share[@]}"; do note "$name: left out, there is no list of tests"; done
  fi
fi

if ((${#failed[@]})); then
  printf '\nnot passed: %s\n' "${failed[@]}"
  exit 1
fi
printf '\nall stages passed in %d s\n' "$SECONDS"
