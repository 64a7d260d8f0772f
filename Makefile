# make demo  set up, align the embedded model, read the verdict
# make test  set up, run the tests
# make site  build the documentation into site/
# make calibrate DATA=PATH  measure every judge on every labelled set, write the table of docs/judges.md
# They need only Python >= 3.11, make and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint site calibrate setup setup-dev clean

demo: setup
	@$(BIN)/safeserve models get >/dev/null
	@date +%s > $(VENV)/.demo-started
	@$(BIN)/safeserve quickstart; code=$$?; \
	echo "demo: $$(( $$(date +%s) - $$(cat $(VENV)/.demo-started) )) s after set-up, exit code $$code" >&2; exit $$code

test: setup-dev
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

site: setup-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

calibrate: setup
	@test -n "$(DATA)" || { echo "make calibrate DATA=PATH: name the folder with the public data sets" >&2; exit 2; }
	$(BIN)/python tools/calibration_table.py --root "$(DATA)" --page docs/judges.md

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "safeserve needs Python 3.11 or newer; try make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { echo "python3 has no venv module; on Debian: apt-get install python3-venv" >&2; exit 3; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@started=$$(date +%s); $(BIN)/python tools/install_torch.py && $(PIP) install -q -c constraints.txt -e . && \
	touch $@ && echo "set-up: $$(( $$(date +%s) - started )) s" >&2

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@started=$$(date +%s); $(BIN)/python tools/install_torch.py && $(PIP) install -q -c constraints.txt -e '.[dev]' && \
	touch $@ $(VENV)/.installed && echo "set-up: $$(( $$(date +%s) - started )) s" >&2

clean:
	rm -rf $(VENV) build site src/*.egg-info
