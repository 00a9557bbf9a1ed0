# Two commands: `make demo` shows the main job, `make test` proves it. Each installs into .venv.
PYTHON ?= python3
BIN := .venv/bin
# One process more than there are cores, since some tests wait; one that has nothing more to do takes
# tests of another.
PROCESSES ?= $(shell expr $$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) + 1)
PARALLEL := --numprocesses $(PROCESSES) --dist worksteal
DEMO := demo
# Of everybody in benchmarks: with one, two processes of a shared machine do not meet.
THREADS ?= 1
BENCHMARKS := cold_start load cached startup plain cait_memory train_step classify serve input
# Of benchmarks/compare.py.
SUITES := forward optimized cait train_forward_backward
MEASURED := build/benchmarks
SITE := build/site
# CI sets it: the versions of .ci/requirements.txt, by their hashes, and nothing besides; else the
# newest that fit.
LOCK ?=
COMPILE := uv pip compile --quiet --no-header --generate-hashes --no-annotate --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28

.PHONY: demo test test-all lint docs lock audit benchmark gpu clean

demo: .venv/installed
	rm -rf $(DEMO)
	@printf '\n== The models\n'
	$(BIN)/deit-zoo list
	@printf '\n== Two handwritten digits, by the shipped checkpoint\n'
	$(BIN)/deit-zoo data digits --output $(DEMO)/digits
	$(BIN)/deit-zoo classify --model deit_pico_distilled_digits --topk 2 \
		$(DEMO)/digits/val/3/1438.png $(DEMO)/digits/val/7/1442.png
	@printf '\n== The shipped checkpoint on all validation images\n'
	$(BIN)/deit-zoo evaluate deit_pico_distilled_digits --data $(DEMO)/digits
	@printf '\n== The same checkpoint, trained again from nothing\n'
	$(BIN)/deit-zoo reproduce deit_pico_distilled_digits --gpus 0 \
		--data $(DEMO)/digits --output $(DEMO)/run

test: .venv/installed
	$(BIN)/python -m pytest -q $(PARALLEL)

# Besides, the largest models and whole training runs.
test-all: .venv/installed
	$(BIN)/python -m pytest -q -m 'not gpu' $(PARALLEL)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# docs/ as a site, without a warning; open build/site/index.html.
docs: .venv/installed
	rm -rf $(SITE)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --nitpicky docs $(SITE)

# What CI installs, by uv since pip takes two minutes more; build.txt has it, and what builds a release.
# After each change of a dependency.
lock: .venv/installed
	PATH=$(BIN):$$PATH $(COMPILE) pyproject.toml --extra dev --output-file .ci/requirements.txt
	printf 'hatchling>=1.26\nuv>=0.9\n' | PATH=$(BIN):$$PATH $(COMPILE) - --output-file .ci/build.txt

# Known vulnerabilities of what CI installs; asks pypi.org.
audit: .venv/installed
	$(BIN)/pip-audit --requirement .ci/requirements.txt --require-hashes --disable-pip --strict

# Everything that was ever measured, and docs/performance.md of it; on a quiet machine. What was
# broken off leaves the former results as they were.
benchmark: .venv/installed
	rm -rf $(MEASURED)
	mkdir -p $(MEASURED)
	for name in $(BENCHMARKS); do \
		$(BIN)/python benchmarks/$$name.py --threads $(THREADS) \
			--json $(MEASURED)/$$name.json || exit 1; \
	done
	for name in $(SUITES); do \
		$(BIN)/python benchmarks/compare.py $$name --threads $(THREADS) \
			--json $(MEASURED)/$$name.json || exit 1; \
	done
	mkdir -p benchmarks/results
	cp $(MEASURED)/*.json benchmarks/results
	$(BIN)/python benchmarks/page.py

# What a GPU has to show, in nine minutes and without an install: PYTHON has torch and timm. Then
# the curve of all published models there.
gpu:
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py --output $(MEASURED)/gpu
	PYTHONPATH=. $(PYTHON) -m deit_zoo benchmark --curve --device cuda \
		--output $(MEASURED)/gpu/curve.json --plot $(MEASURED)/gpu/curve.png

clean:
	rm -rf .venv $(DEMO)

.venv/installed: pyproject.toml $(LOCK)
	@echo 'Installing into .venv, which takes some minutes the first time'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
ifdef LOCK
	$(BIN)/python -m pip install --quiet --require-hashes --requirement .ci/build.txt
	$(BIN)/uv pip install --quiet --no-deps --require-hashes --python $(BIN)/python --requirement $(LOCK)
	$(BIN)/python -m pip --isolated install --quiet --no-index --no-build-isolation --editable '.[dev]'
else
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
endif
	touch $@
