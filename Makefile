# Everything stands on `make setup`, which does nothing when it has been done.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

# One torch thread a process: the work runs in several processes at once.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
PROCESSES ?= 0

.PHONY: setup demo test lint docs docs-check audit clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 with venv, or say make PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python's venv is missing: apt-get install python3.11-venv"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/unlearn demo --output outputs/demo

# PROCESSES=2 is quicker by a third on two cores, but tests of stalls and kills may then run out of time.
test: setup
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadgroup --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

# The site, in docs/_build/html; a warning, such as a link that leads nowhere, is an error.
docs: setup
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

# The commands of README and docs/ that train, evaluate or search, run with the demo's recipes at their own size.
docs-check: setup
	$(BIN)/python -m tests.docs.full_run

# Known vulnerabilities of the pins; exit code 2 of the script means that the advisory service did not answer.
audit:
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit; }
	$(PYTHON) .ci/audit .venv-audit/bin/pip-audit

clean:
	rm -rf outputs docs/_build .pytest_cache .ruff_cache
