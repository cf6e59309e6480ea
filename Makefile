# Everything runs in .venv, made by `make venv` from pip alone.
PYTHON ?= python3
# Which ONNX Runtime: cpu, or gpu on a machine with CUDA (`make clean` between the two).
RUNTIME ?= cpu
# On a machine without CUDA torch's CPU build is taken, which PyPI has not: hundreds of megabytes instead of gigabytes.
# `make venv RUNTIME=gpu` takes PyPI's, with CUDA; an index of your own goes in TORCH_INDEX.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
BIN := .venv/bin

.PHONY: venv demo test test-fast test-full test-gpu test-tensorrt check bench weights release clean

venv: .venv/ready
.venv/ready: pyproject.toml weights/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	case ",$(RUNTIME)," in *,gpu,*) ;; *) \
	    $(BIN)/pip install --quiet --no-deps --extra-index-url $(TORCH_INDEX) 'torch==$(TORCH)+cpu' ;; esac
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(RUNTIME),formats,train,export,serve,bench,demo,dev]' -e ./weights
	# NVIDIA's wheels, for Linux on x86-64 alone, may leave the index one day; everything but engines works without
	$(BIN)/pip install --quiet -c constraints.txt -e '.[tensorrt-rtx]' || echo "TensorRT for RTX can't be installed: \
	    no engines are built, and tests of them are skipped; everything else works"
	touch .venv/ready

demo: venv  ## export M-SAM, segment a phantom with clicks from a file, print what came out, write demo/demo.png
	$(BIN)/python -m samkit.demo --out demo

test: venv
	$(BIN)/python -m pytest -n 2 --dist loadgroup --durations 20

test-fast: venv  ## unit tests but those marked slow
	$(BIN)/python -m pytest -n 2 --dist loadgroup --durations 20 -m "not slow" tests/unit samkit tools

test-full: venv  ## SAM ViT-B at 1024 pixels through the real TensorRT for RTX; minutes, 4 GB of memory, no GPU
	$(BIN)/python -m pytest -n 0 -m full --timeout 1800

test-gpu: RUNTIME = gpu
test-gpu: venv  ## everything that needs CUDA but not TensorRT; a test that can't run fails; then prints the timings
	$(BIN)/python -m pytest -n 0 -m "gpu and not tensorrt" --require-gpu
	$(BIN)/python -m tools.bench --device cuda

test-tensorrt: RUNTIME = cpu,tensorrt
test-tensorrt: venv  ## build and run every method's engines of both libraries, compare, print the table; needs a GPU
	$(BIN)/python -m pytest -n 0 -m tensorrt --require-tensorrt

check: venv  ## lint, types, layers
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: venv  ## measure all methods on phantoms: bench/*.json, bench/report.html; DATA=FOLDER: accuracy on real images
	$(BIN)/python -m tools.bench $(if $(DATA),--data $(DATA))

weights: venv  ## train the demonstration checkpoints again (half an hour)
	$(BIN)/python -m samkit.training.demo_weights --out weights/samkit_demo_weights

release: venv  ## check that changelog, version and tag agree, and build both wheels in dist/
	$(BIN)/python -m tools.release

clean:
	rm -rf .venv build dist *.egg-info bench demo exports
