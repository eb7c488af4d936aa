# make demo | test | lint: each installs what it needs into .venv first
PYTHON ?= python3
# not from the environment, as `demo` and `clean` remove them: make demo DEMO=...
VENV := .venv
DEMO := demo
BIN := $(VENV)/bin

.PHONY: demo test lint clean

# train SE-ResNet-50 on real pictures, evaluate it, show the result
demo: $(VENV)/.ready
	rm -rf $(DEMO)
	$(BIN)/seresnet-timm demo-data $(DEMO)/digits
	$(BIN)/seresnet-timm train --preset digits_demo --data-dir $(DEMO)/digits --output $(DEMO) --experiment run
	$(BIN)/seresnet-timm validate --model seresnet50_ascend --num-classes 10 --img-size 32 --crop-pct 1.0 --workers 1 \
		--data-dir $(DEMO)/digits --checkpoint $(DEMO)/run/model_best.pth.tar
	$(BIN)/seresnet-timm report $(DEMO)/run

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 tests

lint: $(VENV)/.ready
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info

$(VENV)/.ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e '.[demo,test,lint]'
	touch $@
