# make demo | test | lint: each installs what it needs into .venv first
# make test-cpu and make test-npu are the two halves of make test; the second needs a g++ and has its own .venv-npu
PYTHON ?= python3
# not from the environment, as `demo` and `clean` remove them: make demo DEMO=...
VENV := .venv
NPU_VENV := .venv-npu
TESTS := not slow
DEMO := demo
BIN := $(VENV)/bin

.PHONY: demo test test-cpu test-npu test-slow lint clean

# train SE-ResNet-50 on real pictures, evaluate it, show the result
demo: $(VENV)/.ready
	rm -rf $(DEMO)
	$(BIN)/seresnet-timm demo-data $(DEMO)/digits
	$(BIN)/seresnet-timm train --preset digits_demo --data-dir $(DEMO)/digits --output $(DEMO) --experiment run
	$(BIN)/seresnet-timm validate --data-dir $(DEMO)/digits --checkpoint $(DEMO)/run/model_best.pth.tar
	$(BIN)/seresnet-timm report $(DEMO)/run

test: test-cpu test-npu

test-cpu: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "$(TESTS)" tests --ignore tests/npu

# torch_npu's own code on an emulated Ascend server; exit code 3 of the first command: not possible here, it says why
test-npu:
	@$(PYTHON) tests/ascend_emulator/make_venv.py $(NPU_VENV); code=$$?; \
	if [ $$code = 0 ]; then $(NPU_VENV)/bin/python -m pytest -n 2 --dist loadgroup -m "$(TESTS)" tests/npu; \
	elif [ $$code = 3 ] && [ -z "$$CI" ]; then exit 0; else exit $$code; fi

# further variants of the same tests, about six minutes more
test-slow:
	$(MAKE) test TESTS=slow

# style, layers of imports, recipes, types: all settings are in pyproject.toml
lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python docs/draw_layers.py --check
	$(BIN)/shellcheck recipes/*.sh recipes/slurm/*.sbatch .ci/run
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(NPU_VENV) $(DEMO) build dist *.egg-info .ruff_cache .mypy_cache .import_linter_cache seresnet_timm/data/_jpeg*.so

$(VENV)/.ready: setup.cfg setup.py pyproject.toml seresnet_timm/data/_jpeg.c seresnet_timm/data/_resize.h
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e '.[demo,test,lint]'
	touch $@
