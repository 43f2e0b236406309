# Two commands matter: `make demo` shows the product on real data, `make test` runs every check. `make loop` goes once
# through the whole life of a model. All need Python >= 3.11 and make; everything else is installed into .venv.

PYTHON ?=
# Twice as many as there are cores: much of the tests' time is waiting, for servers, clocks and disks.
JOBS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) * 2 )))
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist worksteal

# uv takes ten seconds where pip takes a minute. It knows nothing of an index that pip is set to: then, and where uv fails,
# pip does it.
PIP = $(BIN)/python -m pip
install = ! $(PIP) config list | grep -E '\.(index-url|no-index)=' >/dev/null && \
	$(PIP) install --quiet --disable-pip-version-check uv >/dev/null 2>&1 && \
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(1) 2>/dev/null || \
	$(PIP) install --quiet --disable-pip-version-check $(1)

# The tests start hundreds of processes: without its bytecode each would compile the whole package.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo loop test test-lowest test-tensors bench docs lint collect companions format clean

help:
	@echo "make demo    install, write the example's sources, and walk through the whole product"
	@echo "make loop    train a model, serve it, let its data drift, and train it again, on five weeks of flights"
	@echo "make test    lint, types, layer contract, and all tests with the coverage gate"
	@echo "make test-lowest  the core of the tests on the lowest versions that pyproject.toml admits, before a release"
	@echo "make test-tensors  training sets as tensors of torch and TensorFlow, which are gigabytes, before a release"
	@echo "make bench   our speed compared with the floors, in one run"
	@echo "make docs    build the documentation, warnings as errors"
	@echo "make lint    only ruff, mypy and the layer contract"
	@echo "make collect import all tests, so that those who run them side by side find their bytecode"
	@echo "make companions  the programs with which some tests speak, in an environment of their own"
	@echo "make format  let ruff rewrite what it can"
	@echo "make clean   remove what the commands above made"

demo: .venv/.installed-demo
	@$(BIN)/python feature_repo/demo.py

loop: .venv/.installed-loop
	@$(BIN)/python feature_repo/loop/play.py

# The closing line is pytest's summary; a missed coverage gate fails the run as a failed test does.
test: .venv/.installed-test
	@$(MAKE) --no-print-directory --jobs 3 lint collect companions
	@sh tools/redis.sh
	@sh tools/wrk.sh
	@sh tools/postgres.sh $(BIN)/python
	@sh tools/chromium.sh $(BIN)/python
	@rm -f .coverage .coverage.*
	@scratch=$$(sh tools/scratch.sh); trap 'rm -rf "$$scratch"' EXIT INT TERM HUP; \
		$(PYTEST) $${scratch:+--basetemp="$$scratch"} --cov --cov-report= --durations=25

# Python 3.11 too is the lowest; another one is named by PYTHON. Not all tests: those that speak with what is installed.
LOWEST := build/lowest
SPOKEN := arrow_types certificate client every_type materialize offline_delta online_in_process online_redis_cluster \
	online_redis_faults push server_gate server_online server_process store training_set_frames training_sets

test-lowest: $(LOWEST)/.installed
	@sh tools/redis.sh
	@sh tools/postgres.sh $(LOWEST)/bin/python
	@$(PYTEST:$(BIN)/%=$(LOWEST)/bin/%) tests/unit tests/properties tests/conformance \
		$(SPOKEN:%=tests/integration/test_%.py)

$(LOWEST)/.installed: tools/environment.sh pyproject.toml
	@PYTHON="$(or $(PYTHON),python3.11)" sh tools/environment.sh $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --upgrade --resolution lowest-direct \
		--editable '.[test]'
	@touch $@

# Gigabytes, so in an environment of its own. pip installs torch: it may know of a smaller wheel than uv finds.
TENSORS := build/tensors

test-tensors: $(TENSORS)/.installed
	@$(TENSORS)/bin/python -m pytest --noconftest tests/compat/tensors.py

$(TENSORS)/.installed: tools/environment.sh pyproject.toml
	@PYTHON="$(PYTHON)" sh tools/environment.sh $(TENSORS)
	@$(TENSORS)/bin/python -m pip install --quiet --disable-pip-version-check --editable . pytest pytest-timeout \
		torch tensorflow-cpu
	@touch $@

bench: .venv/.installed-test
	@$(BIN)/python -m benchmarks

docs: .venv/.installed-docs
	@$(BIN)/python docs/generate.py
	@$(BIN)/python -m sphinx --fresh-env --fail-on-warning --nitpicky --quiet docs site
	@echo "The documentation is at site/index.html."

lint: .venv/.installed-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

collect: .venv/.installed-test
	@$(BIN)/python -m pytest --collect-only -qq >/dev/null || $(BIN)/python -m pytest --collect-only -qq

companions: .venv/.installed-test
	@sh tools/companions.sh $(BIN)/python

format: .venv/.installed-test
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf .venv build dist site feature_repo/data feature_repo/.featurestore feature_repo/loop/played
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.made: tools/environment.sh
	@PYTHON="$(PYTHON)" sh tools/environment.sh .venv
	@touch $@

.venv/.installed-%: .venv/.made pyproject.toml
	@echo "Installing featurestore with what '$*' needs into .venv (up to a minute or two the first time)."
	@$(call install,--editable '.[$*]')
	@touch $@
