# Everything a fresh machine with Python 3.11+ needs: `make demo`, `make test`.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check slow gpu webgpu torture format clean

demo: .venv/.installed
	$(BIN)/colorpress run --force --output-dir reports/demo --start-from training/pretrained/best.pt --val-share 0.2 --test-share 0.3 \
		--imgsz 96 --epochs 8 --learning-rate 0.0005 --distil-imgsz 80 --finetune-crops 3000 --student-crops 4000 \
		--student-trial-crops 800 --int8-loss 0.05 --qat-crops 600 --rank-photos 2 --search-effort demo \
		--runs 30 --min-seconds 1 --no-roof

# Two processes, each with whole files, since what a file's tests share takes longest to make.
test: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not webgpu"

check: .venv/.check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Those of the web page also need Debian's chromium and chromium-driver, or they are skipped.
slow: .venv/.slow
	$(BIN)/python -m pytest -m slow

gpu: .venv/.test
	$(BIN)/python -m pytest -m gpu

# On a GPU, or in software by the SwiftShader of Debian's chromium: tests/test_webgpu.py finds that.
webgpu: .venv/.webgpu
	$(BIN)/python -m pytest -m webgpu -rs

# Kills, failing disks, damaged and hostile files: an hour on two cores; TORTURE=0.1 does a tenth. Stopped, it goes on
# with the parts that are left.
TORTURE ?= 1
torture: .venv/.test
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.torture --scale $(TORTURE)

format: .venv/.check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .torture .pytest_cache .mypy_cache .ruff_cache *.egg-info

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found"; echo "hint: install one, or name it: make PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing colorpress and what it needs into .venv (a minute or two)"
	$(PIP) torch -e .
	@touch $@

.venv/.test: .venv/.installed
	$(PIP) -e '.[test]'
	@touch $@

.venv/.slow: .venv/.test
	$(PIP) -e '.[test,slow]'
	@touch $@

.venv/.webgpu: .venv/.test
	$(PIP) -e '.[test,webgpu]'
	@touch $@

.venv/.check: .venv/.installed
	$(PIP) -e '.[dev]'
	@touch $@
