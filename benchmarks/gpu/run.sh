#!/usr/bin/env bash
# Measure on a GPU machine without network: benchmarks/gpu/run.sh STAGE [options] [-- STAGE ...]
#
# In a copy of a checkout, with its folder .whl as benchmarks/gpu/prepare.sh filled it: installs the
# wheels into SITE (default: a new folder), then runs python -m benchmarks.gpu with the arguments.
# Results: STAGE.json and log.txt in OUT (default: results/gpu). "run.sh tests [options]" runs pytest
# instead, on WORKERS (default: 12) processes; its output is in tests.txt.
set -uo pipefail
[ $# -gt 0 ] || { sed -n '2,/^set/{/^set/d;s/^# \?//;p}' "$0"; exit 2; }
cd "$(dirname "$0")/../.."
export OUT=${OUT:-$PWD/results/gpu} PYTHONUNBUFFERED=1 WANDB_MODE=offline
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
PYTHON=${PYTHON:-python3} SITE=${SITE:-$(mktemp -d)}
mkdir -p "$OUT"
if [ ! -e "$SITE/.complete" ]; then
  start=$SECONDS
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$SITE" .whl/*.whl && touch "$SITE/.complete" || exit 1
  echo "wheels installed in $((SECONDS - start)) s"
fi
[ -d data/demo/train ] || { mkdir -p data && tar -C data -xJf .whl/demo-data.tar.xz; }
export PYTHONPATH=$PWD:$SITE${PYTHONPATH:+:$PYTHONPATH}
git rev-parse HEAD >/dev/null 2>&1 || export COMMIT=${COMMIT:-$(cat .whl/commit)}

if [ "$1" = tests ]; then
  "$PYTHON" -m pytest -q -p no:cacheprovider -n "${WORKERS:-12}" "${@:2}" 2>&1 | tee "$OUT/tests.txt"
else
  "$PYTHON" -m benchmarks.gpu "$@" 2>&1 | tee -a "$OUT/log.txt"
fi
