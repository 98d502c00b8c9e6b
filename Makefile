# make reproduce   install, run the quick suite, write the report           (no data set, no GPU needed)
# make test        install, check the style and the types, run all tests
# make test-all    the same and the tests that need environments of their own
# make bench       the published comparison with transformers and reformer-pytorch (an hour or two on 2 cores; see docs/benchmarks.md)
# make gpu         on a machine with an NVIDIA GPU: the kernels' tests and the benchmarks there; results go to OUT=...
# make clean       remove what the two made, but no results

PYTHON ?= python3
VENV ?= .venv
SCALE ?= quick
OUTPUT ?= reproduction/$(SCALE)
PEERS_VENV ?= .venv-peers
TRITON_VENV ?= .venv-triton
FASTAI_VENV ?= .venv-fastai
CLUSTER_VENV ?= .venv-cluster
BENCH_OUTPUT ?= results/benchmarks
BENCH_LENGTHS ?= 1k,2k,4k,8k,16k,32k,64k
BENCH_SECONDS ?= 300
BENCH := $(PEERS_VENV)/bin/reformer-lab bench
bench_files = --csv $(BENCH_OUTPUT)/$(1).csv --figure $(BENCH_OUTPUT)/$(1).svg
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: reproduce test test-all test-triton test-hf test-fastai test-cluster lint bench bench-gpu bench-environment gpu clean

reproduce: $(VENV)/.installed
	$(BIN)/reformer-lab reproduce --scale $(SCALE) --output $(OUTPUT)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q --durations=10

test-all: test test-triton test-hf test-fastai test-cluster

# The kernels for GPUs in triton's interpreter, and compiled for a GPU that need not be there. triton exists for Linux alone.
test-triton: $(TRITON_VENV)/.installed
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(TRITON_VENV)/bin/python -m pytest tests/ops/test_lsh_triton.py -n 2 --dist worksteal -q --durations=5

# What transformers computes against what converted models compute, and our models as its own.
test-hf: $(PEERS_VENV)/.installed
	OMP_NUM_THREADS=1 $(PEERS_VENV)/bin/python -m pytest tests/integrations -n 2 --dist worksteal -q --durations=5

# Our models and data in fastai's Learner, and the worked example.
test-fastai: $(FASTAI_VENV)/.installed
	OMP_NUM_THREADS=1 $(FASTAI_VENV)/bin/python -m pytest tests/integrations/test_fastai.py -n 2 --dist worksteal -q --durations=5

# Suites of experiments on a Ray cluster of two nodes, both on this machine.
test-cluster: $(CLUSTER_VENV)/.installed
	OMP_NUM_THREADS=1 $(CLUSTER_VENV)/bin/python -m pytest tests/runner/test_ray.py -q --durations=5

gpu:
	PYTHON=$(PYTHON) scripts/gpu.sh $(OUT)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: bench-environment
	$(BENCH) attention --what operator,layer --device cpu --lengths $(BENCH_LENGTHS) --max-seconds $(BENCH_SECONDS) \
	  $(call bench_files,attention-cpu)
	$(BENCH) scaling --device cpu $(call bench_files,scaling-cpu)
	$(BENCH) step --device cpu --lengths 4k,16k --repeats 3 $(call bench_files,step-cpu)
	$(BENCH) step --device cpu --preset crime_and_punishment --repeats 1 --max-seconds 3600 \
	  --csv $(BENCH_OUTPUT)/step-half-a-million-cpu.csv

bench-gpu: bench-environment
	$(BENCH) attention --what operator --device cuda --precision bf16 --heads 16 --lengths 1k,2k,4k,8k,16k,64k,256k,1m \
	  --max-seconds $(BENCH_SECONDS) $(call bench_files,attention-gpu)

bench-environment: $(PEERS_VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	$(BIN)/python -m pip check
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable ".[dev]"
	$(BIN)/python -m pip check
	touch $@

# transformers 4.57.6 asks for an older huggingface_hub than constraints.txt has: an environment of its own.
$(PEERS_VENV)/.installed: pyproject.toml constraints-peers.txt
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-peers.txt \
	  --editable ".[peers,test]"
	$(PEERS_VENV)/bin/python -m pip check
	touch $@

$(TRITON_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,triton]"
	$(TRITON_VENV)/bin/python -m pip check
	touch $@

# fastai asks for torchvision and spaCy, which nothing here needs: what it does need is installed by name, and fastai alone.
$(FASTAI_VENV)/.installed: export PIP_QUIET = 1
$(FASTAI_VENV)/.installed: export PIP_DISABLE_PIP_VERSION_CHECK = 1
$(FASTAI_VENV)/.installed: pyproject.toml constraints-fastai.txt
	$(PYTHON) -m venv $(FASTAI_VENV)
	$(FASTAI_VENV)/bin/python -m pip install --constraint constraints-fastai.txt --editable ".[test,fastai-dependencies]"
	$(FASTAI_VENV)/bin/python -m pip install --constraint constraints-fastai.txt --no-deps fastai==2.8.12
	touch $@

$(CLUSTER_VENV)/.installed: pyproject.toml constraints-cluster.txt
	$(PYTHON) -m venv $(CLUSTER_VENV)
	$(CLUSTER_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-cluster.txt \
	  --editable ".[test,cluster]"
	$(CLUSTER_VENV)/bin/python -m pip check
	touch $@

clean:
	rm -rf $(VENV) $(PEERS_VENV) $(TRITON_VENV) $(FASTAI_VENV) $(CLUSTER_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
