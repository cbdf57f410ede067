# The two commands of a fresh machine: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/runs
	$(BIN)/gap demo --out runs/demo

test: $(VENV)/tests
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(VENV)/tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	.ci/types $(BIN)/python

# Two steps, because the tests need more than the product does.
$(VENV)/runs: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/tests: $(VENV)/runs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
