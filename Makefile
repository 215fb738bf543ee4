# The two commands of the README are `make train` and `make test`; both create .venv when it is missing or outdated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run side by side, each on one thread: several would wait for each other.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: train test lint unit notebooks export run-notebooks lab pretrain book clean

train: $(VENV)/installed
	$(BIN)/rfs train --model tiny-base

test: lint unit notebooks

lint: $(VENV)/installed
	$(BIN)/ruff check .

unit: $(VENV)/installed
	$(PYTEST) tests --ignore=tests/test_colab.py

# Every notebook is executed again, alone in an environment with torch and Jupyter only; nbval compares the stored outputs
# where they are deterministic.
notebooks: $(VENV)/installed
	$(PYTEST) tests/test_colab.py

# For authors: write rfs_utils/chNN.py from the notebooks; execute all notebooks and store their outputs.
export: $(VENV)/installed
	$(BIN)/python tools/notebooks.py export

run-notebooks: export
	$(BIN)/python tools/notebooks.py run
	$(BIN)/python tools/notebooks.py practice

lab: $(VENV)/installed
	$(BIN)/jupyter lab ch06/ch06.ipynb

pretrain: $(VENV)/installed
	$(BIN)/rfs pretrain --out pretrained

# The book as a static site in build/book, from the notebooks' stored outputs.
book: $(VENV)/installed
	$(BIN)/python docs/book.py

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	touch $@
