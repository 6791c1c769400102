# Every target sets up .venv by itself; all that is needed is Python 3.11 to 3.14 with venv, and make.
# With a C++ compiler, the native engine is built too; pip brings CMake and ninja where they are missing.
#   make run PYTHON=python3.12                   another Python
#   make run PIP_FLAGS='--extra-index-url URL'   another package index, as for PyTorch's CPU build

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
NATIVE := CMakeLists.txt $(wildcard native/*)
SANITIZE := build/sanitize

.PHONY: run report test test-faults test-cluster fuzz test-slow sanitize sanitize-address sanitize-thread lint format bench golden clean test-arm results trials ablation gap corruptions front throughput exports demo peers lenet mcu gpu batches wheel smoke notebooks test-trackio

run: $(VENV)/installed
	$(BIN)/smidgen run; status=$$?; [ $$status -ge 2 ] || $(BIN)/smidgen report runs; exit $$status

report: $(VENV)/installed
	$(BIN)/smidgen report runs

# As many processes as there are cores; TEST_FLAGS=-n0 for one, as to debug. Without the policy, the threads of
# PyTorch's tiny operations wait for each other by keeping the cores from the other processes: three times as slow.
test: export OMP_WAIT_POLICY := passive
TEST_FLAGS ?= -n auto --maxprocesses 4 --dist worksteal
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(TEST_FLAGS)

# Kills, cuts, flips, hostile files and full disks, as many as docs/reliability.md says: about 12 minutes on 2 cores.
# `make test` does a short form of each.
test-faults: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/faults --thorough

# A coverage-guided fuzzer on each reader of files, for so many seconds each.
FUZZ_SECONDS ?= 60
fuzz: $(VENV)/installed-dev
	$(INSTALL) -e '.[dev,fuzz]'
	for reader in idx idx.gz image picture npz csv trial weights checkpoint run; do \
	    $(BIN)/python tests/faults/fuzz.py $$reader $(FUZZ_SECONDS) || exit 1; \
	done

# Sweeps on a Ray cluster of this machine, with a node that is killed. Ray leaves processes and warnings behind.
test-cluster: $(VENV)/installed-dev
	$(INSTALL) -e '.[dev,cluster]'
	$(BIN)/python -m pytest -m slow -p no:unraisableexception -W default tests/test_cluster.py

# The log for trackio, which needs an older pillow than the pages' tests; that is put back afterwards.
test-trackio: $(VENV)/installed-dev
	grep -v '^pillow==' constraints.txt > $(VENV)/trackio.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c $(VENV)/trackio.txt 'trackio>=0.40'
	$(BIN)/python -m pytest tests/test_trackio.py; status=$$?; \
	    $(BIN)/python -m pip uninstall --quiet --yes trackio; $(INSTALL) pillow; exit $$status

# The exported C on emulated Cortex-M0 and M4 boards, all 10,000 images on the M4, and on an AVR where avr-gcc and
# simavr are there. On Debian:
#   apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm gcc-avr avr-libc simavr
test-arm: $(VENV)/installed-dev
	@{ command -v arm-none-eabi-gcc && command -v qemu-system-arm; } >/dev/null || \
	    { echo "make test-arm needs gcc-arm-none-eabi, libnewlib-arm-none-eabi and qemu-system-arm"; exit 2; }
	$(BIN)/python -m pytest -s -m '' tests/test_export_arm.py tests/test_export_avr.py

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

# The tests of the kernels under the address, undefined behaviour and thread sanitizers, for GCC on Linux.
# pip builds in isolation, which brings nanobind and CMake; the wheel is not installed: SMIDGEN_NATIVE_CORE
# names the module in the build directory. Python has no sanitizer in it, so the sanitizers' libraries are loaded
# before everything else, and libstdc++ with them, or the first exception would abort. Python leaves memory behind
# when it ends, so leaks do not count. pytest must leave standard error alone: the report is the last thing written.
sanitize: sanitize-address sanitize-thread

sanitize-address: SANITIZERS := address,undefined
sanitize-address: SANITIZED := tests/test_native_kernels.py tests/test_native_rows.py tests/test_native_core.py tests/test_soap.py
# Looks for races between threads that work on one batch. PyTorch's own threads are not instrumented.
sanitize-thread: SANITIZERS := thread
sanitize-thread: SANITIZED := tests/test_native.py tests/test_native_rows.py tests/test_soap.py -k 'threads or take_the_steps'
sanitize-address sanitize-thread: $(VENV)/installed-dev
	rm -rf $(SANITIZE)/$@
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check $(PIP_FLAGS) --no-deps --wheel-dir $(SANITIZE)/$@/wheel \
	    -C build-dir=$(SANITIZE)/$@ -C cmake.build-type=Debug -C cmake.define.SMIDGEN_SANITIZE=$(SANITIZERS) .
	@ls $(SANITIZE)/$@/_core.*.so >/dev/null 2>&1 || { echo "make sanitize needs a C++ compiler and Python's headers"; exit 2; }
	SMIDGEN_NATIVE_CORE="$$(ls $(SANITIZE)/$@/_core.*.so)" \
	LD_PRELOAD="$$(ldd $(SANITIZE)/$@/_core.*.so | awk '/lib(a|t|ub)san|libstdc\+\+/ {print $$3}' | xargs)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1 \
	    $(BIN)/python -m pytest $(SANITIZED) -m 'not slow' --capture=sys

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/installed
	$(BIN)/smidgen bench

# The figures of docs/, each by the program of its name in benchmarks/, which says what it does (`--help`). Those that
# need runs train what is missing: `results` takes about two hours on 2 cores, `ablation` one, `trials` minutes a
# seed. A quick try: make results ARGS='--seeds 0-1 --epochs 1 --runs /tmp/runs'
results trials ablation gap corruptions front throughput lenet gpu batches: $(VENV)/installed
	$(BIN)/python benchmarks/$@.py $(ARGS)

# Training steps in other frameworks, which are installed into the environment. For tinygrad: apt-get install clang.
peers: $(VENV)/installed-dev
	$(INSTALL) -r benchmarks/peers.txt
	$(BIN)/python benchmarks/peers.py $(ARGS)

# C code for microcontrollers, beside others'. On Debian: apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi
# qemu-system-arm valgrind. onnx2c is built from its repository: ARGS='--onnx2c PATH'.
mcu: $(VENV)/installed-dev
	$(INSTALL) -r benchmarks/mcu.txt
	$(BIN)/python benchmarks/mcu.py $(ARGS)

# docs/demo.html is made from the flagship, which is trained unless ARGS names a finished run.
# The notebooks are executed in full and stored with their outputs.
exports demo notebooks: $(VENV)/installed-dev
	$(BIN)/python benchmarks/$@.py $(ARGS)

# The sdist and the wheel that is built from it, in dist/. The wheel has kernels for all instruction levels; its tag,
# manylinux_2_35 with GCC 12, is of the oldest glibc and libstdc++ that it can run with, as auditwheel finds them.
wheel: $(VENV)/installed-dev
	@[ "$$(uname)" = Linux ] || { echo "make wheel is for Linux; elsewhere: python -m pip wheel --no-deps ."; exit 2; }
	$(INSTALL) -r packaging/tools.txt
	rm -rf build/wheel dist
	$(BIN)/python -m build --outdir build/wheel
	@$(BIN)/python -m zipfile -l build/wheel/*.whl | grep -q /_core || \
	    { echo "make wheel needs a C++ compiler and Python's headers"; exit 2; }
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --wheel-dir dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist

# The wheel in an environment of its own, without a compiler. ARGS=--full installs the dependencies too: minutes.
smoke: $(VENV)/installed-dev
	$(BIN)/python packaging/smoke.py $(ARGS)

golden: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/test_golden.py --overwrite

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "smidgen needs Python 3.11 or newer, and $(PYTHON) is older; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt $(NATIVE) | $(VENV)/bin/python
	@echo "installing smidgen into $(VENV) (PyTorch is large: a few minutes the first time)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt $(NATIVE) | $(VENV)/bin/python
	@echo "installing smidgen and its test tools into $(VENV) (PyTorch is large: a few minutes the first time)"
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/installed $@
