# Every target works on a fresh clone: what it needs is installed first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCKER ?= docker
REGISTRY ?= localhost/tenfold
TAG ?= dev
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: help setup demo test test-all test-faults test-docker test-browser image images sbom scan lint format bench-digits bench-cifar10 bench-ablations bench-semi-vit bench-suggest bench-views bench-data bench-train bench-profile bench-scaling compiled manifests clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

setup: $(STAMP)  ## virtual environment with tenfold and its tools

$(STAMP): pyproject.toml docker/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint docker/constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## the whole pipeline on handwritten digits, two labels a class
	TENFOLD_THREADS=$${TENFOLD_THREADS:-1} $(BIN)/tenfold run --preset digits

test: $(STAMP)  ## the tests, real S3 and MLflow servers among them
	$(BIN)/pytest -m 'not slow and not docker and not browser' -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(STAMP)  ## also the slow ones
	$(BIN)/pytest -m 'not docker and not browser' -n 2 --dist loadfile --no-loadscope-reorder

test-faults: $(STAMP)  ## the faults, trainings killed at random steps among them; about a quarter of an hour
	$(BIN)/pytest tests/faults -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

image:  ## one image: TARGET=cpu|gpu IMAGE=registry/name:tag BASE_IMAGE=… BUILD_OPTIONS=…
	DOCKER_BUILDKIT=1 $(DOCKER) build $(BUILD_OPTIONS) --file docker/Dockerfile --target $(TARGET) --tag $(IMAGE) \
	  $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) --build-arg VERSION=$(VERSION) \
	  --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) .

images:  ## both images: REGISTRY=registry/team TAG=…; push them and compile with their digests
	$(MAKE) image TARGET=cpu IMAGE=$(REGISTRY)/tenfold-cpu:$(TAG)
	$(MAKE) image TARGET=gpu IMAGE=$(REGISTRY)/tenfold-gpu:$(TAG)

sbom: $(STAMP)  ## what IMAGE holds of Python packages, as CycloneDX: build/sbom.json
	$(BIN)/pip install --quiet -c docker/constraints.txt -e .[images]
	mkdir -p build
	$(DOCKER) run --rm --network none $(IMAGE) pip freeze --exclude tenfold > build/packages.txt
	$(BIN)/cyclonedx-py requirements build/packages.txt --of JSON --output-file build/sbom.json

scan: sbom  ## known vulnerabilities of IMAGE: of Python packages by pip-audit, of Debian's by trivy where that is installed
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement build/packages.txt
	if command -v trivy > /dev/null; then trivy image --severity HIGH,CRITICAL $(IMAGE); fi

test-docker: $(STAMP)  ## build both images and run the whole pipeline inside them; a Docker engine, or root and dockerd
	$(BIN)/pip install --quiet -c docker/constraints.txt -e .[images]
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/pytest tests/docker -m docker

test-browser: $(STAMP)  ## the report in Chromium (on PATH, or CHROMIUM=…); screenshots in build/browser
	$(BIN)/pip install --quiet -c docker/constraints.txt -e .[browser]
	$(BIN)/pytest tests/browser -m browser

compiled: $(STAMP)  ## compile the pipelines' golden YAML anew, and the Kubernetes resources
	$(BIN)/tenfold compile --output pipelines/compiled/semi_supervised.yaml
	$(BIN)/tenfold compile --pipeline retrain --output pipelines/compiled/retrain.yaml
	$(BIN)/python -m tenfold.pipelines.manifests pipelines/compiled/semi_supervised.yaml k8s/components/pipeline/pipeline.yaml

manifests: $(STAMP)  ## check the Kubernetes manifests, and render those for production into build/prod.yaml
	$(BIN)/pytest tests/unit/test_manifests.py tests/unit/test_network_policies.py tests/unit/test_pipeline_manifests.py
	mkdir -p build
	$(BIN)/kubectl kustomize k8s/overlays/prod > build/prod.yaml

bench-digits: $(STAMP)  ## the ladder over 10 splits; about half an hour, goes on where it was stopped
	$(BIN)/python benchmarks/digits.py

bench-cifar10: $(STAMP)  ## CIFAR-10 on CPU cores: ARCHIVE=cifar10-jpeg.tar; goes on where it was stopped
	$(BIN)/python benchmarks/cifar10.py $(ARCHIVE)

bench-semi-vit: $(STAMP)  ## EMA teacher, FixMatch and pseudo labels on CIFAR-10 with 50 labels a class: CIFAR10=….tar
	$(BIN)/python benchmarks/semi_vit.py $(CIFAR10)

bench-suggest: $(STAMP)  ## images to label that are picked, beside random ones, on digits and CIFAR-10: CIFAR10=….tar
	$(BIN)/python benchmarks/suggest.py $(CIFAR10)

bench-ablations: $(STAMP)  ## SimCLRv2's ablations on digits; goes on where it was stopped
	$(BIN)/python benchmarks/ablations.py

bench-data: $(STAMP)  ## packing, views and reading against their peers: PHOTOGRAPHS=….tar CIFAR10=….tar
	$(BIN)/pip install --quiet -c docker/constraints.txt -e .[bench]
	$(BIN)/python benchmarks/data.py $(PHOTOGRAPHS) $(CIFAR10)

bench-train: $(STAMP)  ## the training engine against its peers: CIFAR10=….tar, ONLY='steps ranks' for some parts
	$(BIN)/pip install --quiet -c docker/constraints.txt -e .[bench]
	$(BIN)/python benchmarks/train.py $(CIFAR10) $(if $(ONLY),--only $(ONLY))

bench-profile: $(STAMP)  ## where a pretraining step's time goes, into docs/profile.md
	$(BIN)/python benchmarks/step_profile.py --write docs/profile.md

bench-scaling: $(STAMP)  ## estimates of the papers' runs on 8 to 512 GPUs, into docs/scaling.md; PRICE=… a GPU-hour
	$(BIN)/python benchmarks/scaling.py --write docs/scaling.md $(if $(PRICE),--price $(PRICE))

bench-views: $(STAMP)  ## how exact the views are
	$(BIN)/python benchmarks/views.py

clean:  ## remove the environment and what runs left here
	rm -rf $(VENV) .tenfold build dist *.egg-info src/*.egg-info
