# Every command of the project. `make run` and `make test` are complete on a fresh machine with Python 3.11 or newer.

PYTHON ?= python3
# cpu or gpu: which onnxruntime serves.
RUNTIME ?= cpu
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e
# Asked for the GPU, the server must not fall back to the CPU.
DEVICE := $(if $(filter gpu,$(RUNTIME)),--device cuda)
SAMPLE := model_export/builtin/digits/samples/seven.png

.DEFAULT_GOAL := help
.PHONY: help run test test-slow test-faults test-browser test-docker test-gpu bench-gpu soak audit bench bench-precision lint format lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-12s %s\n", $$1, $$2}'

run: .venv/run-$(RUNTIME) models ## convert the built-in model if models/ is empty, and serve on http://127.0.0.1:8000
	@SERVICE_LOG_FORMAT=$${SERVICE_LOG_FORMAT:-text} exec $(BIN)/resnet-serve $(DEVICE) --example-image $(SAMPLE)

# One process leaves half of two cores idle. A file of tests stays in one, and with it what its tests share.
test: .venv/dev lint ## lint, check types and run the test suite
	$(BIN)/pytest --numprocesses 2 --dist loadfile

test-slow: .venv/dev ## the tests that take minutes
	$(BIN)/pytest -m slow

test-faults: .venv/dev ## overload, hostile input, restarts behind nginx and haproxy: about 20 minutes
	$(BIN)/pytest -m faults

test-browser: .venv/dev .venv/axe ## the page in a real browser: chromium and chromium-driver from the distribution
	$(BIN)/pytest -m browser -rs

test-docker: .venv/dev ## images and the compose file on a container engine, if there is one: about 10 minutes
	$(BIN)/pytest -m docker -rs

test-gpu: ## the tests that need an NVIDIA GPU
	@$(MAKE) --no-print-directory RUNTIME=gpu .venv/dev
	$(BIN)/pytest -m gpu

bench-gpu: ## ways of running a ResNet on CUDA, beside torch; of decoding; this server and its ceilings; WORKLOADS=W4,W6 for some
	@$(MAKE) --no-print-directory RUNTIME=gpu .venv/dev
	@$(INSTALL) '.[bench-gpu]'
	$(BIN)/python -m benchmarks.cuda
	$(BIN)/python -m benchmarks.decoding
	$(BIN)/python -m benchmarks --device cuda --http-workers $(shell nproc) --open --workloads $(or $(WORKLOADS),W2,W3,W4,W4f,W5,W6)

soak: .venv/dev ## ordinary trouble for MINUTES (30): memory, gauges, latency and answers, with a chart
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),30)

audit: .venv/dev ## known vulnerabilities of what is installed, and a bill of materials (CycloneDX) in sbom.json
	$(BIN)/pip-audit --skip-editable --progress-spinner off
	$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --output-file sbom.json .venv
	@echo "wrote sbom.json"

bench: .venv/dev ## this server, its ceilings and, with PEERS=all, its peers; WORKLOADS=W1,W2 for some
	$(BIN)/python -m benchmarks --open --peers $(or $(PEERS),none) $(if $(WORKLOADS),--workloads $(WORKLOADS))

bench-precision: .venv/run-$(RUNTIME) ## the speed of each precision on this machine
	$(BIN)/python -m benchmarks.precision

lint: .venv/dev ## formatting, rules, types and the direction of imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev ## format the code and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# torch's CUDA build pins its own NVIDIA wheels, so those are left to it.
lock: ## write constraints.txt anew from the newest versions that pyproject.toml allows
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --upgrade pip
	.venv-lock/bin/pip install --quiet --dry-run --ignore-installed --report .venv-lock/report.json \
	  '.[cpu,gpu,export,dev]'
	.venv-lock/bin/python -c "import json; found = json.load(open('.venv-lock/report.json'))['install']; \
	  pins = {each['metadata']['name'].lower(): each['metadata']['version'].partition('+')[0] for each in found}; \
	  print(*(f'{name}=={version}' for name, version in sorted(pins.items()) \
	          if name != 'resnet-service' and not name.startswith('nvidia-')), sep='\n')" > constraints.txt
	rm -rf .venv-lock

clean: ## remove what the other targets made, models/ excepted
	rm -rf .venv .venv-lock .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

models: .venv/run-$(RUNTIME)
	@folder=$${SERVICE_MODELS:-models}; ls $$folder/*/*/model.onnx >/dev/null 2>&1 || \
	  $(BIN)/resnet-export convert builtin:digits --name digits --out $$folder
.PHONY: models

# One environment. .venv/run-cpu and .venv/run-gpu mark the onnxruntime that is in it, .venv/dev the tools of `make test`.
.venv/run-$(RUNTIME): pyproject.toml constraints.txt hatch_build.py service/resample.c
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "installing into .venv (a minute with warm package caches)"
	@rm -f .venv/run-* .venv/dev
	@$(BIN)/pip uninstall --quiet --yes onnxruntime onnxruntime-gpu 2>/dev/null
	@$(INSTALL) '.[$(RUNTIME),export]'
	@touch $@

.venv/dev: .venv/run-$(RUNTIME)
	@$(INSTALL) '.[$(RUNTIME),export,dev]'
	@touch $@

# axe-core 4.12.1 is one file of this wheel; playwright, which the wheel asks for, is not wanted.
.venv/axe: Makefile | .venv/dev
	@$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $@ axe-playwright-python==0.1.8
	@touch $@
