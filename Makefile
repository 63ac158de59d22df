# Every target sets up what it needs; the virtual environment is made once and reused.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
ROUNDS ?= 100
READY := $(VENV)/.ready
GPU_PYTHON ?= $(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON))
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.PHONY: help install repro test test-all test-fast faults check format dependencies documentation docs plots-page screenshots figure peers costs speed memory growth gpu examples lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY)  ## make the virtual environment in .venv

repro: $(READY)  ## run the pipeline: prepare, train, evaluate
	@$(BIN)/bigstep repro

test: $(READY)  ## run the tests but the longest ones, JOBS=2 files at a time (about 20 minutes)
	@$(BIN)/python -m pytest -m "not long" -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-all: $(READY)  ## run every test (about 30 minutes)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-fast: $(READY)  ## run the tests that take under a minute
	@$(BIN)/python -m pytest -m "not slow"

faults: $(VENV)/.bench  ## ROUNDS=100 of every fault at most (hours), and docs/reliability.md from them
	@rm -f .bigstep/faults.jsonl
	@$(BIN)/python -m pytest tests/faults tests/test_out_of_memory.py -n $(JOBS) --rounds $(ROUNDS) --fault-results .bigstep/faults.jsonl
	@$(BIN)/python benchmarks/faults/reliability_table.py .bigstep/faults.jsonl

check: $(READY)  ## format, lint, types and documentation, as CI does
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_docs.py

format: $(READY)  ## format the code and mend what lint can
	@$(BIN)/ruff check --fix-only -q .
	@$(BIN)/ruff format .

dependencies: $(READY)  ## write the code each stage imports into dvc.yaml
	@$(BIN)/python tools/dvc_dependencies.py

documentation: $(READY)  ## write docs/parameters.md from the schema, docs/guarantees.md from the tests' lists, and the notebook
	@$(BIN)/python tools/parameter_table.py
	@$(BIN)/python tools/guarantees_table.py
	@$(BIN)/python tools/tutorial_notebook.py

docs: $(VENV)/.docs  ## build the site into site/, check it in Chromium, and run the notebook (minutes; installs MkDocs)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@$(BIN)/python -m pytest -q tests/site/check_site.py tests/site/check_notebook.py

plots-page: $(READY)  ## write the page of `dvc plots` with Vega in it, for use without network (needs npm)
	@$(BIN)/python tools/plots_page.py

screenshots: $(READY)  ## take docs/pictures again, of a project made for it, with Chromium
	@$(BIN)/python tools/screenshots.py

figure: $(READY)  ## write docs/figures: exactness.png and search.png, from docs/peers.md, docs/measurements and predicted memory
	@$(BIN)/python benchmarks/peers/exactness_figure.py
	@$(BIN)/python benchmarks/search/search_figure.py

peers: $(VENV)/.bench  ## write docs/peers.md: the same cases through bigstep and its peers (installs them)
	@$(BIN)/python benchmarks/peers/correctness.py

costs: $(READY)  ## measure what keyed randomness, the noise scale and the self-check cost
	@$(BIN)/python benchmarks/costs/keyed_randomness.py
	@$(BIN)/python benchmarks/costs/self_check.py

speed: $(READY)  ## measure what a run costs beyond its training, the choice of `auto`, loops, the data path, whole runs and workers
	@$(BIN)/python benchmarks/speed/startup.py
	@$(BIN)/python benchmarks/speed/auto.py
	@$(BIN)/python benchmarks/speed/loops.py
	@$(BIN)/python benchmarks/speed/data_path.py
	@$(BIN)/python benchmarks/speed/compiled.py
	@$(BIN)/python benchmarks/speed/whole_run.py
	@$(BIN)/python benchmarks/speed/search_workers.py

memory: $(READY)  ## write docs/memory.md's table: predicted against measured peaks
	@$(BIN)/python benchmarks/costs/memory_prediction.py

examples: $(READY)  ## run every example from `bigstep init` to the metrics, kill it, search, and serve its model
	@$(BIN)/python -m pytest -q examples/check_examples.py

growth: $(READY)  ## write docs/growth.md: seconds and memory over the number of images, steps and trials (3 GB of scratch space)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/growth.py

gpu:  ## run every check on a GPU and write docs/gpu.md; needs torch, torchvision, numpy, pytest and hypothesis only
	@$(GPU_PYTHON) benchmarks/gpu_page.py

lock: $(READY)  ## resolve requirements.txt, the peers' requirements-bench.txt and the site's requirements-docs.txt, from pyproject.toml
	@$(BIN)/uv pip compile --quiet pyproject.toml --extra pipeline --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --output-file requirements.txt
	@$(BIN)/uv pip compile --quiet pyproject.toml --extra pipeline --extra dev --extra bench --constraint requirements.txt \
		--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--output-file requirements-bench.txt
	@$(BIN)/uv pip compile --quiet pyproject.toml --extra pipeline --extra dev --extra docs --constraint requirements.txt \
		--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--output-file requirements-docs.txt
	@sed -i "s/requirements.txt # .*/requirements.txt # $$(sha256sum requirements.txt | cut -c1-12)\"/" python_env.yaml

clean:  ## remove results, data stores and caches; MLflow's history and .venv stay
	rm -rf data/prepared results/train results/evaluate .bigstep/workspaces build dist site
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests pipelines -name __pycache__ -type d -prune -exec rm -rf {} +
	git checkout -q -- results 2>/dev/null || true

$(VENV)/.bench: $(READY) requirements-bench.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --require-hashes -r requirements-bench.txt
	@touch $@

$(VENV)/.docs: $(READY) requirements-docs.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --require-hashes -r requirements-docs.txt
	@touch $@

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer must run make, but $(PYTHON) is " + sys.version.split()[0] + "; call make PYTHON=python3.11")'
	@echo "installing into $(VENV) (torch is large: some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'from pathlib import Path; from bigstep.diagnostics.doctor import keep_site_cache_private as private; from bigstep.project.paths import ProjectPaths; private(ProjectPaths(Path.cwd()))'
	@touch $(READY)
