# A newcomer needs only `make serve` and `make test`; both set up .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-
PIP := $(BIN)/python -m pip --disable-pip-version-check
PROTOS := $(wildcard protos/qwenvl/inference/v1/*.proto)

.PHONY: serve test test-full lint stubs docs setup setup-dev clean

serve: setup
	$(BIN)/qwenvl serve $(ARGS)

setup: $(STAMP)all
setup-dev: $(STAMP)dev

# torch is installed first: its exact pin selects the build for this machine.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP)all: pyproject.toml protos/pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e ./protos -e '.[all]'
	touch $@

$(STAMP)dev: pyproject.toml protos/pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e ./protos -e '.[dev]'
	$(BIN)/python tests/contract/install_generators.py
	touch $@ $(STAMP)all

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint

test: lint
	$(BIN)/pytest -m 'not full and not gpu'

# Also the slow tests with the coverage of the packages, and the tests in simulated environments of other machines.
test-full: lint
	$(BIN)/pytest -m 'not gpu' --cov --cov-report=term
	$(BIN)/python tests/environments.py
	@echo "Coverage: $$($(BIN)/coverage report --format=total) %"

# Generated code is checked in; a test regenerates and compares it.
stubs: setup-dev
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=protos --pyi_out=protos $(PROTOS)
	$(BIN)/python -m grpc_tools.protoc -Iprotos --grpc_python_out=protos $(filter %_service.proto,$(PROTOS))

# The generated tables of docs/ are checked in; a test compares them.
docs: setup-dev
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build *.egg-info protos/build protos/*.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage*
