# Each target does all its own set-up on a fresh machine, into .venv, from constraints.txt.
PYTHON ?= python3
UV ?= $(shell command -v uv 2>/dev/null)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BEGUN := $(shell date +%s)

# A terminal shows the installer's own progress; a log gets one line a step, and errors.
# uv takes half of pip's time, where it is on the PATH; `make UV= ...` takes pip all the same.
PIP = $(BIN)/python -m pip install --constraint constraints.txt $$(test -t 2 || echo -qq)
UV_PIP = "$(UV)" pip install --python $(BIN)/python --constraint constraints.txt $$(test -t 2 || echo -q)
INSTALL = $(if $(UV),$(UV_PIP),$(PIP))

.PHONY: test demo browser lint audit licences hashes rooms clean

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python -m pytest -n 2 --dist worksteal

demo: $(STAMP)
	$(BIN)/python -m vqa.run -m +sweep=lora

browser: $(STAMP)
	@echo "Playwright, to open pages in a Chromium of this machine: 50 MB"
	@$(INSTALL) --editable ".[browser,serve]"
	$(BIN)/python -m pytest -m browser

lint: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

audit: $(STAMP)
	@echo "pip-audit, from the extra named so: known vulnerabilities of what constraints.txt pins; one that cannot be asked about fails"
	@$(INSTALL) --editable ".[audit]"
	grep -v '^torch==' constraints.txt | $(BIN)/python -m pip_audit --strict --no-deps --disable-pip -r /dev/stdin

hashes: $(STAMP)
	@echo "uv, from the extra audit: hashes of all files of what constraints.txt pins, but torch"
	@$(INSTALL) --editable ".[audit]"
	grep -v '^torch==' constraints.txt | $(BIN)/uv pip compile --generate-hashes --no-deps --no-header --no-annotate --quiet - > constraints-hashes.txt

licences: $(STAMP)
	$(BIN)/python .ci/supply.py > docs/licences.md

rooms:
	$(PYTHON) .ci/rooms.py > docs/rooms.md

# torch comes by pip even where uv is. Which build fits a machine stands in pip's settings (an index, a folder of
# wheels), which uv does not read: it would fetch CUDA's from PyPI. `--torch-backend` of uv asks another host, which
# a closed network may not reach. uv keeps the torch that is there.
$(STAMP): constraints.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: Python must be 3.11 or newer, \
	$(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...")'
	@echo "Installing into $(VENV), once: 0.5 GB to download, 2 GB on disk, 3 to 5 minutes; with CUDA several GB more."
	@echo "Linux without a GPU needs no CUDA: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make ..."
	@echo "[1/3] Python environment: seconds"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] torch by pip: 0.2 GB, a minute; with CUDA several GB"
	@$(PIP) torch
	@echo "[3/3] vqa and 140 libraries by $(if $(UV),uv (a minute),pip (2 to 4 minutes)): 0.3 GB"
	@$(INSTALL) --editable ".[dev,postgresql]"
	@touch $(STAMP)
	@echo "Installed: $$(du -sh $(VENV) | cut -f1) in $$(( $$(date +%s) - $(BEGUN) )) seconds."

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info
