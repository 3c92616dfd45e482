#!/usr/bin/env bash
# Pack what a GPU machine without network lacks into .whl, about 29 MB: benchmarks/gpu/prepare.sh
#
# Wheels for Python 3.12, the demo's data and the name of the commit. The machine must have torch,
# torch-geometric, e3nn, numpy, scipy, numba, click, requests, tqdm, tensorboard, PyYAML and pytest.
# Needs a network and fairchem-dens installed in PYTHON (default: python3). Run it again after a
# commit; wheels and data that are there are kept.
set -euo pipefail
[ $# -eq 0 ] || { sed -n '2,/^set/{/^set/d;s/^# \?//;p}' "$0"; exit 2; }
cd "$(git rev-parse --show-toplevel)"
PYTHON=${PYTHON:-python3}
mkdir -p .whl

WHEELS=(
  fairchem-core==1.10.0 ase==3.29.0 lmdb==1.6.2 torchtnt==0.2.4 pyre-extensions==0.0.32
  submitit==1.5.4 hydra-core==1.3.8 omegaconf==2.3.1 orjson==3.13.0 pydantic==2.14.4
  pydantic-core==2.50.5 annotated-types==0.8.0 typing-inspection==0.4.5 typing-inspect==0.9.0
  typing-extensions==4.16.0
  # wandb and its program
  wandb==0.31.0 platformdirs==4.14.8 cwevals==0.0.1b1 opentelemetry-api==1.45.2
  opentelemetry-sdk==1.45.2 opentelemetry-proto==1.45.2
  opentelemetry-semantic-conventions==0.66b2 opentelemetry-exporter-otlp-proto-http==1.45.2
  opentelemetry-exporter-otlp-proto-common==1.45.2
  opentelemetry-exporter-http-transport==0.66b2 googleapis-common-protos==1.76.0
)
platforms=()
for p in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${p}_x86_64")
done
if [ "$(cat .whl/list 2>/dev/null)" != "${WHEELS[*]}" ]; then
  rm -f .whl/*.whl
  "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" -d .whl "${WHEELS[@]}"
  # there is no wheel of this one; it is pure Python
  "$PYTHON" -m pip wheel -q --no-deps -w .whl antlr4-python3-runtime==4.9.3
  echo "${WHEELS[*]}" > .whl/list
fi
if [ ! -e .whl/demo-data.tar.xz ]; then
  [ -d data/demo/train ] || "$PYTHON" -m dens.cli data demo data/demo
  tar -C data -cJf .whl/demo-data.tar.xz demo/train demo/val_id
fi
git describe --always --dirty --exclude='*' > .whl/commit
du -sh --apparent-size .whl | sed 's/\t.*/ in .whl/'
git ls-files -z --cached --others --exclude-standard | xargs -0 du -ch --apparent-size |
  tail -n 1 | sed 's/\t.*/ in tracked and new files/'
