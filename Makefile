PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
DEMO = configs/oc20/eqv2_dens_demo.yml
VENV2 ?= .venv-fairchem2
BIN2 = $(VENV2)/bin
STAMP2 = $(VENV2)/.installed
DEMO2 = configs/fairchem2/esen_dens_demo.yaml

.PHONY: install browser test test-slow install-docs docs docs-check docs-links demo install2 test2 demo2 clean

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[fairchem1,test]'
	touch $@

# The test of `dens report` opens its page in Chromium. Where there is none and it cannot be
# installed, that test is skipped, and says so.
browser:
	@command -v chromium || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends chromium; } || \
	  echo "no Chromium: install the package chromium to test reports"

# A file's tests run in one worker, since they share models and runs.
WORKERS ?= auto
PYTEST = -m pytest -n $(WORKERS) --dist loadfile

test: install browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python $(PYTEST) -m 'not slow'

# Several ranks, killed runs, commands of the docs, studies and benchmarks.
test-slow: install browser
	$(BIN)/python $(PYTEST) -m slow

# The site, docs/_build/html/index.html: warnings are errors.
SITE = docs/_build
SPHINX = $(BIN)/python -m sphinx -q
DOCS_STAMP = $(VENV)/.docs-installed

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

install-docs: $(DOCS_STAMP)

docs: install-docs
	$(BIN)/codespell
	$(SPHINX) -W --keep-going docs $(SITE)/html

# Every page in Chromium, as wide as a desktop and as a phone.
docs-check: docs browser
	$(BIN)/python docs/check_pages.py

# Links to other sites; needs a network.
docs-links: $(DOCS_STAMP)
	$(SPHINX) -b linkcheck docs $(SITE)/links

data/demo: | install
	$(BIN)/dens data demo $@

demo: install data/demo
	. $(BIN)/activate && OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} fairchem main.py --config $(DEMO)
	$(BIN)/dens evaluate --config $(DEMO) --checkpoint "$$(ls -t checkpoints/*/checkpoint.pt | head -n 1)"

# The same with fairchem-core 2, whose environment is another one.
install2: $(STAMP2)

$(STAMP2): setup.cfg pyproject.toml
	test -x $(BIN2)/python || $(PYTHON) -m venv $(VENV2)
	$(BIN2)/python -m pip install $(TORCH2) -e '.[fairchem2]'
	touch $@

# Tests of the adapter, and those of the rooms below it that fairchem-core 2 uses.
test2: install2
	$(BIN2)/python -m pip install --quiet pytest pytest-xdist hypothesis 'setuptools>=64' -e '.[fairchem2,report]'
	$(BIN2)/python $(PYTEST) tests/fairchem2 tests/test_hosts.py tests/test_core_alone.py \
	  tests/test_recipes_command.py tests/test_doctor.py \
	  tests/denoising tests/data/store/test_aselmdb.py

data/demo2: | install2
	$(BIN2)/dens data demo $@ --format aselmdb

demo2: install2 data/demo2
	. $(BIN2)/activate && OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} fairchem main.py --config $(DEMO2)
	$(BIN2)/dens evaluate --config $(DEMO2) \
	  --checkpoint "$$(ls -td runs/esen_dens_demo/*/checkpoints/final | head -n 1)"

clean:
	rm -rf $(SITE) docs/tutorials $(VENV) $(VENV2) build *.egg-info .pytest_cache .ruff_cache
