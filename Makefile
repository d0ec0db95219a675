# Two commands are all a fresh machine needs: `make demo` and `make test`.
# Both make a virtual environment in .venv; PYTHON chooses the interpreter (3.11 or newer).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
PROMPT := aerial drone shot slowly circling a lighthouse on rocky coast, ocean waves below, golden hour

.PHONY: help demo test test-all check format clean

help:
	@echo "make demo      install broll and nano, and make a clip from a prompt"
	@echo "make test      install the test extras and run every test but the long ones (under 15 minutes on 2 cores)"
	@echo "make test-all  the same with the long ones"
	@echo "make check     formatting, lint, types, direction of imports"

demo: $(VENV)/engine
	@echo "== making a clip with nano: $(PROMPT)"
	$(BIN)/broll generate "$(PROMPT)" --model nano --seed 1 --out demo.mp4 --sheet --force
	@echo "== done: open demo.mp4; demo.sheet.png shows it at a glance; broll generate \"your words\" makes the next"

test: $(VENV)/test
	@echo "== running the tests, in two processes of one thread each"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses 2 --dist worksteal

test-all: $(VENV)/test-all
	@echo "== running all tests, also the long ones, in two processes of one thread each"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

check: $(VENV)/check
	@echo "== formatting, lint, types, imports"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "broll needs Python 3.11 or newer, this is %d.%d; say make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "== making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/engine: pyproject.toml constraints.txt nano/pyproject.toml | $(VENV)/python
	@echo "== installing broll with its engine, and nano (a few minutes; torch is the large part)"
	@$(PIP) --editable ".[engine]" --editable ./nano
	@touch $@

$(VENV)/test: $(VENV)/engine
	@echo "== installing the test extras"
	@$(PIP) --editable ".[engine,server,test]"
	@touch $@

$(VENV)/test-all: $(VENV)/test
	@echo "== installing what only the long tests need: Ray, schemathesis"
	@$(PIP) --editable ".[engine,server,test,test-all]"
	@touch $@

$(VENV)/check: $(VENV)/test
	@$(PIP) --editable ".[engine,server,test,dev]"
	@touch $@

clean:
	rm -rf $(VENV) demo.mp4 demo.sheet.png
