# Everything a fresh clone needs: `make demo` shows the whole line, `make test` proves it. Both install what they use into .venv.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo cuda test test-full test-optimum faults gpu-check lint pin clean

$(VENV)/.installed: pyproject.toml setup.py kernels/cpu.h $(wildcard kernels/*/cpu.cpp kernels/*/*.c)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e ".[cpu,openvino,trt-rtx,hf,track,triton,dev]"
	touch $@

demo: $(VENV)/.installed  ## train a teacher, distil it, build engines, measure, gate, bundle, and write the page
	$(RUN) -m pipeline run recipes/quickstart.yaml

cuda: $(VENV)/.installed  ## compile the CUDA C++ kernels, for any GPU from Ampere on (needs nvcc, but no GPU)
	$(RUN) -m kernels.nvcc

test: $(VENV)/.installed  ## the tests a pull request must pass
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadgroup

test-full: $(VENV)/.installed test-optimum  ## and what needs chromium or an environment of its own; a skip for a missing tool is a failure
	OMP_NUM_THREADS=1 STILLHOUSE_FULL=1 $(RUN) -m pytest -q

test-optimum:  ## export of transformers models through optimum-onnx, which needs an older transformers in its own venv
	$(PYTHON) -m venv .venv-optimum
	.venv-optimum/bin/pip install --quiet --disable-pip-version-check -e ".[cpu,optimum,dev]"
	OMP_NUM_THREADS=1 .venv-optimum/bin/python -m pytest -q tests/stages/test_optimum.py

faults: $(VENV)/.installed  ## every fault test in full (up to 3 hours on 2 cores; Ctrl-C and call again to go on), then the table
	OMP_NUM_THREADS=1 $(RUN) tests/faults --table docs/faults.md

gpu-check:  ## on a machine with a GPU: the kernels' tests, memory checks and speed, in at most 8 minutes; PYTHON=... with torch, triton, numpy, pytest
	-$(PYTHON) -m kernels.nvcc
	$(PYTHON) benchmarks/gpu_check.py

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

pin: $(VENV)/.installed  ## after a change of behaviour: raise `version` in the stage or row, then record its digest
	$(RUN) tests/versions.py --write

clean:
	rm -rf $(VENV) .venv-optimum .stillhouse runs .faults
