# Container images. A stage's image follows from its file in stages/: nothing lists them by hand.

ENGINE ?= docker
REPOSITORY ?= wsssbed
BASE_IMAGE ?= $(shell sed -n 's/^ARG BASE_IMAGE=//p' docker/base.Dockerfile)
BUILD_FLAGS ?=
STAGES := $(shell $(PYTHON) -c 'from stages.runtime.catalogue import all_stages; print(*all_stages())')
IMAGE_VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# The commit, if the images hold exactly that: with changes that are not committed none says it.
IMAGE_SOURCES := stages wsssbed_hub docker pyproject.toml constraints.txt
REVISION := $(shell test -z "$$(git status --porcelain -- $(IMAGE_SOURCES) 2>&1)" && git rev-parse HEAD)

.PHONY: images image-base list-images gpu-check lint-images $(STAGES:%=image-%)

images: $(STAGES:%=image-%)  ## the container images of all stages (about 7 GB, shared by all)

list-images:  ## the images that `make images` builds
	@printf '%s\n' $(STAGES:%='$(REPOSITORY)/%:$(IMAGE_VERSION)')

image-base:
	$(ENGINE) build $(BUILD_FLAGS) --file docker/base.Dockerfile \
	  --build-arg BASE_IMAGE='$(BASE_IMAGE)' --tag $(REPOSITORY)/base:$(IMAGE_VERSION) .

$(STAGES:%=image-%): image-%: image-base  ## the image of one stage: make image-sod-poolnet
	$(ENGINE) build $(BUILD_FLAGS) --file docker/stage.Dockerfile \
	  --build-arg BASE=$(REPOSITORY)/base:$(IMAGE_VERSION) --build-arg STAGE=$* \
	  --build-arg VERSION=$(IMAGE_VERSION) --build-arg REVISION=$(REVISION) \
	  --build-arg REPOSITORY=$(REPOSITORY) \
	  --tag $(REPOSITORY)/$*:$(IMAGE_VERSION) --tag $(REPOSITORY)/$*:latest .

gpu-check: install  ## every stage twice on the GPU: equal digests, compared with the record
	$(BIN)/python -m stages.gpu_check $(GPU_CHECK_FLAGS)

lint-images:  ## Dockerfiles, workflows and shell scripts
	docker/lint.sh
