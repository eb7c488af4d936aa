# make demo | test | lint | docs: each installs what it needs into .venv first
# make test-cpu and make test-npu are the two halves of make test; the second needs a g++ and has its own .venv-npu
# make test-npu NPU_VERSION=2.10.0: another torch_npu; make test-npu-versions: several, one after the other
# make test-arm: a selection on an emulated aarch64 machine, as root
# make test-oldest: with the oldest versions of torch and others that setup.cfg allows, in .venv-oldest
PYTHON ?= python3
# not from the environment, as `demo` and `clean` remove them: make demo DEMO=...
VENV := .venv
NPU_VERSION :=
NPU_VENV := .venv-npu$(addprefix -,$(NPU_VERSION))
# the oldest with the same tests, one in the middle, the newest; make test has 2.13.0
NPU_VERSIONS := 2.10.0 2.12.0 2.14.0
TESTS := not slow
# test processes at a time; some tests wait, so two cores are busy with three
JOBS := 3
DEMO := demo
BIN := $(VENV)/bin
# the tests of the second half find the bytecode of the first
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-cpu test-npu test-npu-versions test-arm test-oldest test-slow lint docs release-check clean

# train SE-ResNet-50 on real pictures, evaluate it, show the result
demo: $(VENV)/.ready
	rm -rf $(DEMO)
	$(BIN)/seresnet-timm demo-data $(DEMO)/digits
	$(BIN)/seresnet-timm train --preset digits_demo --data-dir $(DEMO)/digits --output $(DEMO) --experiment run
	$(BIN)/seresnet-timm validate --data-dir $(DEMO)/digits --checkpoint $(DEMO)/run/model_best.pth.tar
	$(BIN)/seresnet-timm report $(DEMO)/run

test: test-cpu test-npu

test-cpu: $(VENV)/.ready
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "$(TESTS)" tests --ignore tests/npu

# torch_npu's own code on an emulated Ascend server; exit code 3 of the first command: not possible here, it says why
test-npu:
	@$(PYTHON) tests/ascend_emulator/make_venv.py $(NPU_VENV) $(NPU_VERSION); code=$$?; \
	if [ $$code = 0 ]; then $(NPU_VENV)/bin/python -m pytest -n $(JOBS) --dist loadgroup -m "$(TESTS)" tests/npu; \
	elif [ $$code = 3 ] && [ -z "$$CI" ]; then exit 0; else exit $$code; fi

# with a CUDA build of torch where pip finds no CPU build; each downloads 3 GB, needs 8 GB of disk, and is then removed
test-npu-versions:
	@failed=; for version in $(NPU_VERSIONS); do echo "== torch_npu $$version"; \
	NPU_CUDA_BUILD=1 $(MAKE) test-npu NPU_VERSION=$$version || failed="$$failed $$version"; rm -rf .venv-npu-$$version; \
	done; [ -z "$$failed" ] || { echo "Failed with torch_npu$$failed" >&2; exit 1; }

# exit code 0 and one sentence where it is not possible
test-arm:
	@bash tests/arm/run.sh

# downloads 3 GB and needs 6 GB of disk; PYTHON is one of 3.10 to 3.12
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -e '.[demo,test]' -c tests/oldest.txt
	.venv-oldest/bin/python -m pytest -n $(JOBS) --dist loadgroup -m "$(TESTS)" tests --ignore tests/npu

# further variants of the same tests, about twenty minutes more
test-slow:
	$(MAKE) test TESTS=slow

# style, layers of imports, recipes, types: all settings are in pyproject.toml
lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python docs/draw_layers.py --check
	$(BIN)/python docs/write_reference.py --check
	$(BIN)/shellcheck recipes/*.sh recipes/*/*.sh recipes/*/*.sbatch tests/arm/run.sh .ci/run .ci/nightly .ci/release-check
	$(BIN)/mypy

# the pages of docs/ as a web site in site/, without network; a warning is an error
docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo 'site/index.html; its search needs a web server: python3 -m http.server -d site'

# build, twine check, the wheel in a fresh environment, the demo; QUICK=1: with the packages of .venv, one epoch
release-check: $(VENV)/.ready
	QUICK=$(QUICK) .ci/release-check

clean:
	rm -rf $(VENV) .venv-npu* .venv-oldest $(DEMO) build dist site *.egg-info .ruff_cache .mypy_cache .import_linter_cache seresnet_timm/data/_jpeg*.so seresnet_timm/data/_augment*.so

$(VENV)/.ready: setup.cfg setup.py pyproject.toml seresnet_timm/data/_jpeg.c seresnet_timm/data/_resize.h seresnet_timm/data/_huffman.h seresnet_timm/data/_huffman_check.h seresnet_timm/data/_augment.c
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e '.[demo,test,lint,docs]'
	touch $@
