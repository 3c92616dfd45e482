PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
DEMO = configs/oc20/eqv2_dens_demo.yml

.PHONY: install browser test demo clean

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

test: install browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

data/demo: | install
	$(BIN)/dens data demo $@

demo: install data/demo
	. $(BIN)/activate && OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} fairchem main.py --config $(DEMO)
	$(BIN)/dens evaluate --config $(DEMO) --checkpoint "$$(ls -t checkpoints/*/checkpoint.pt | head -n 1)"

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
