# make demo   stylize the bundled photos, pictures and a grid in out/
# make test   everything that CI checks
# make test-oldest   the tests with the oldest versions that pyproject.toml allows, in .venv-oldest
# make web    the web page on http://127.0.0.1:7860
.PHONY: demo test test-oldest web lint clean

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Most tests use one core: a process for each core, idle ones taking over tests from the others.
PYTEST = -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

# One stamp for each set of packages: made again only when pyproject.toml changes.
$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python scripts/demo.py

web: $(VENV)/installed
	$(BIN)/styleapp web

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python $(PYTEST)

test-oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint tests/oldest.txt
	.venv-oldest/bin/python $(PYTEST)

clean:
	rm -rf $(VENV) .venv-oldest out
