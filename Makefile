# The two commands: `make demo` and `make test`. Both create .venv and install from constraints.txt first.
# A PYTHON of another version than that of .venv replaces .venv. To keep both: make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CODE := src tests examples benchmarks docs/hooks.py

# The tests for the edit loop, less those that are marked as slow.
QUICK := tests/data tests/evaluation tests/models tests/representations tests/runs/test_folder.py tests/runs/test_metrics_log.py \
	tests/teachers/test_teacher.py tests/training/test_losses.py tests/experiments/test_tournament.py \
	tests/test_config.py tests/test_errors.py tests/test_files.py --ignore=tests/models/test_cost.py

.PHONY: setup demo test quick fuzz lint docs format clean

setup: $(VENV)/.installed

ifneq ($(origin PYTHON),file)
VERSION := import sys; print(sys.version_info[:2])
ifneq ($(shell $(PYTHON) -c '$(VERSION)'),$(shell $(BIN)/python -c '$(VERSION)' 2> /dev/null))
$(VENV)/.installed: other_python
.PHONY: other_python
other_python:
	@test ! -e $(VENV)/pyvenv.cfg || { $(PYTHON) -c '' && rm -rf $(VENV); }
endif
endif

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: $(PYTHON) is too old; give PYTHON=python3.11, or a later one")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py demo

# Two processes, a file at a time, with one thread each: with two threads each they get in each other's way on two cores.
# Files in their own order: by the number of tests, the longest one would come last and have one process wait for it.
# The tests start some hundred processes. PYTHONDONTWRITEBYTECODE would have each of them compile the package again.
test: lint docs
	$(BIN)/python -m compileall -q src
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not slow" $(QUICK)

# Damaged and hostile inputs for five minutes, or for other: make fuzz FUZZ="--seconds 3600 --seed 7"
FUZZ ?= --seconds 300
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py $(FUZZ)

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

# The site, from docs/ and the docstrings, into site/. Its pages work when they are opened from the disk.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: setup
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

clean:
	rm -rf .venv .venv-* build dist site demo *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
