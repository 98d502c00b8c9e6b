#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, where python3 (or $PYTHON) has torch with CUDA, triton, and this package's requirements:
# the tests of the Triton kernels on the GPU, the benchmarks against torch's exact attention, then experiments at the scale gpu.
#
#   scripts/gpu.sh FOLDER
#
# FOLDER gets log.txt, attention.csv, attention.svg and the suite gpu/. finished.txt names the steps that are done: a second call goes
# on there. Exit code 3: the suite's minutes ($MINUTES, 8) are over and more is to do; call again. $EXPERIMENTS names other experiments
# than those that need no data, $DATA the folder of data (docs/gpu.md).
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: scripts/gpu.sh FOLDER}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
python=${PYTHON:-python3}
lengths=${LENGTHS:-1k 2k 4k 8k 16k 64k 256k 1m}
# The last: what torch wants for matrix products that repeat bit for bit, which the tests ask for.
export PYTHONPATH=$PWD/src PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
touch "$folder/finished.txt"

step() {
  local name=$1
  shift
  if grep -qx "$name" "$folder/finished.txt"; then return; fi
  echo "== $name: $*" | tee -a "$folder/log.txt"
  "$@" 2>&1 | tee -a "$folder/log.txt"
  echo "$name" >>"$folder/finished.txt"
}

kernel_tests() {
  REFORMER_LAB_TEST_DEVICE=cuda "$python" -m pytest -q -p no:cacheprovider -n "${JOBS:-8}" --dist worksteal --durations=5 "$@"
}

# One length at a time, so that little is lost when the machine is: its rows are added to those of the lengths before.
attention() {
  "$python" -m reformer_lab bench attention --what operator --device cuda --precision bf16 --heads 16 --only exact,lsh-triton \
    --lengths "$1" --csv "$folder/part.csv"
  if [ -e "$folder/attention.csv" ]; then tail -n +2 "$folder/part.csv"; else cat "$folder/part.csv"; fi >"$folder/rows.csv"
  cat "$folder/rows.csv" >>"$folder/attention.csv"
  rm "$folder/part.csv" "$folder/rows.csv"
}

step machine "$python" -c 'import torch, triton; print(torch.cuda.get_device_name(), "torch", torch.__version__, "triton", triton.__version__)'
step kernels kernel_tests tests/ops/test_lsh_triton.py
for length in $lengths; do step "attention $length" attention "$length"; done
step figure "$python" -m reformer_lab bench figure "$folder/attention.csv" --figure "$folder/attention.svg"
# The grids of all backends, of which every combination of options is compiled: some minutes.
step grids kernel_tests -k triton tests/ops/test_lsh_precision.py tests/ops/test_lsh_operator.py tests/ops/test_lsh_properties.py
step grid kernel_tests tests/ops/test_lsh_backends.py
step reproduce "$python" -m reformer_lab reproduce --scale gpu --only "${EXPERIMENTS:-table2,speed,memory}" \
  --minutes "${MINUTES:-8}" --output "$folder/gpu" ${DATA:+--data "$DATA"}
