# One verb per chore: `make help` lists them. Everything is installed into .venv, nothing outside the repository.

PYTHON = python3
VENV   = .venv
HOST   = bentoml
CONFIG = configs/paged-tiny.yaml
ARGS   =

# PyTorch's own index of CPU builds, asked only where no NVIDIA driver is found (see "torch" below).
TORCH_INDEX = https://download.pytorch.org/whl/cpu

# What the GPU's kernels are interpreted and compiled with on machines without one.
TRITON = triton==3.9.0

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := paged_backend handlers kernels

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install serve test sanitize check format slow soak eval bench bench-gpu bench-peers build model clean distclean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20
	@echo
	@echo "  make serve HOST=torchserve CONFIG=my.yaml ARGS='--port 9000' and make test ARGS='-k scheduler' work too."

# --- install ---------------------------------------------------------------------------------------------------------

install: $(VENV)/.installed ## everything into .venv (done by the verbs below when it is missing)

$(BIN)/python:
	@echo "Installing into $(VENV): some minutes, once."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "paged-backend needs Python 3.10 or newer; \`$(PYTHON)\` is not that." \
	         "Say which to use: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	    echo "This Python cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || { \
	    echo "No C++ compiler found, and the CPU kernels need one: apt-get install g++" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# torch: on a machine with no NVIDIA driver PyPI's Linux wheel would bring gigabytes of CUDA libraries that can't be
# used. So the CPU build of the pinned version is asked for by its full name: first where pip is set up to look (a
# mirror, a folder of wheels), then on PyTorch's own index if that answers within 5 seconds. Only where neither has
# it does PyPI's own build come, and it is said.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@version=$$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt); \
	cpu="torch==$$version+cpu"; \
	if command -v nvidia-smi >/dev/null 2>&1; then \
	    echo "NVIDIA driver found: installing torch $$version with CUDA"; \
	    $(PIP) install --quiet --quiet "torch==$$version" -c constraints.txt; \
	elif $(PIP) install --quiet --quiet "$$cpu" -c constraints.txt >$(VENV)/torch.log 2>&1; then \
	    echo "installed $$cpu"; \
	elif $(BIN)/python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1] + "/torch/", timeout=5)' \
	        $(TORCH_INDEX) >>$(VENV)/torch.log 2>&1; then \
	    echo "installing $$cpu from $(TORCH_INDEX)"; \
	    $(PIP) install --quiet --quiet "$$cpu" -c constraints.txt --extra-index-url $(TORCH_INDEX); \
	else \
	    echo "no CPU build of torch $$version found (see $(VENV)/torch.log): installing PyPI's own build"; \
	    $(PIP) install --quiet --quiet "torch==$$version" -c constraints.txt; \
	fi
	@touch $@

# The editable install remembers which files there are and holds a compiled module: it is made again when a Python
# file came or went, or when something changed that the build reads. An edit in a Python file needs nothing. It is
# built with the pinned tools of .venv, not in an environment of its own that would be downloaded anew each time.
# Triton is not in constraints.txt: a CUDA build of torch has brought the one that it works with. A CPU build brings none,
# and the tests of the GPU's kernels want it, on Linux.
BUILD_TOOLS = scikit-build-core nanobind cmake ninja
FILES := $(sort $(shell find $(SOURCES) -name '*.py'))
NATIVE := $(shell find kernels -name '*.cpp' -o -name '*.hpp' -o -name '*.h' -o -name 'CMakeLists.txt')

ifneq ($(FILES),$(shell cat $(VENV)/.files 2>/dev/null))
.PHONY: $(VENV)/.files
endif
$(VENV)/.files: | $(BIN)/python
	@echo $(FILES) >$@

$(VENV)/.installed: $(VENV)/.torch $(VENV)/.files pyproject.toml constraints.txt CMakeLists.txt $(NATIVE)
	@echo "Installing paged-backend with both hosts, and building its C++ kernels"
	@$(PIP) install --quiet --quiet -c constraints.txt $(BUILD_TOOLS)
	@if $(BIN)/python -c 'import sys, torch; sys.exit(sys.platform != "linux" or torch.version.cuda is not None)'; then \
	    $(PIP) install --quiet --quiet $(TRITON); \
	fi
	@$(PIP) install --quiet --quiet -c constraints.txt --no-build-isolation --editable '.[all,dev]'
	@touch $@

# --- run -------------------------------------------------------------------------------------------------------------

serve: install ## serve the bundled model on BentoML at 127.0.0.1:3000 (HOST=torchserve: at 127.0.0.1:8080)
	@exec $(BIN)/paged-backend serve --host $(HOST) --config $(CONFIG) $(STORE) $(ARGS)

# TorchServe's archive is packed into model_store/.
STORE = $(if $(filter torchserve,$(HOST)),--model-store model_store)

# --- prove -----------------------------------------------------------------------------------------------------------

# Two processes, each of which takes whole files: what a file sets up is set up once.
test: install ## the tests, under 15 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

# A copy of the package of its own, whose C++ looks at each read, write and whole number: with the tests beside it, so
# that they import this copy. -S leaves out the hooks of the installed package. CPython itself never frees some of its
# memory, so leaks are not looked for. What the sanitizers print must not be caught: after it there is no more test.
SANITIZED   := build/sanitize
SANITIZERS   = $$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libubsan.so)
SANITY_TESTS = tests/kernels tests/models tests/executor --ignore tests/kernels/triton

sanitize: install ## the tests of the C++ kernels under AddressSanitizer and UBSan, about 20 minutes on 2 cores
	@rm -rf $(SANITIZED)/package
	$(PIP) install --quiet --quiet --no-deps --no-build-isolation --target $(SANITIZED)/package \
	    -C build-dir=$(SANITIZED)/cmake -C install.strip=false -C cmake.define.PAGED_BACKEND_SANITIZE=ON .
	cp -r tests pyproject.toml model_store $(SANITIZED)/package
	cd $(SANITIZED)/package && LD_PRELOAD="$(SANITIZERS)" OMP_NUM_THREADS=1 \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	    PYTHONPATH=$$($(abspath $(BIN))/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	    $(abspath $(BIN))/python -S -m pytest -p no:cacheprovider --capture=sys -m "not slow" $(SANITY_TESTS) $(ARGS)

bench: install ## the benchmarks, half an hour, into docs/benchmarks (ARGS=--quick: minutes)
	$(BIN)/python -m benchmarks $(ARGS)

bench-gpu: install ## on a GPU: kernels and engine beside limits, transformers and vLLM if it is there, 8 minutes
	$(BIN)/python -m benchmarks.gpu $(ARGS)

# The peers live in an environment of their own, and optimum-intel, which wants another transformers, in one inside it.
# llama.cpp is built for this processor from the source that llama-cpp-python carries: 10 to 25 minutes on 2 cores.
PEERS        := .venv-peers
PEERS_ABS    := $(CURDIR)/$(PEERS)
LLAMA_SDIST  := llama-cpp-python==0.3.36
LLAMA_BINARY := $(PEERS)/llama.cpp/build/bin/llama-server

bench-peers: install $(PEERS)/.installed $(PEERS)/convert/.installed $(LLAMA_BINARY) ## ours and the peers side by side (long)
	$(BIN)/python -m benchmarks.peers --peers-folder $(PEERS) $(ARGS)

# The harness brings a hundred megabytes of packages that nothing else here needs, so it has an environment of its own.
EVAL := .venv-eval

eval: install $(EVAL)/.installed ## lm-evaluation-harness scores us, and the same model on its own backend
	$(BIN)/python -m pytest -m slow -s tests/evaluation $(ARGS)

$(EVAL)/.installed: tests/evaluation/requirements.txt
# The CPU build of torch first: a peer that asks for torch would otherwise bring gigabytes of CUDA libraries.
$(PEERS)/convert/.installed: benchmarks/peers/requirements-convert.txt | $(PEERS)/.installed
$(PEERS)/.installed: benchmarks/peers/requirements.txt
$(PEERS)/.installed $(PEERS)/convert/.installed $(EVAL)/.installed:
	@echo "Installing into $(@D)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --quiet --upgrade pip
	@torch=$$(sed -n 's/^torch/torch/p' $<)+cpu; pip="$(@D)/bin/python -m pip install --quiet --quiet"; \
	$$pip "$$torch" 2>/dev/null || $$pip "$$torch" --extra-index-url $(TORCH_INDEX) || $$pip "$${torch%+cpu}"
	@$(@D)/bin/python -m pip install --quiet --quiet -r $<
	@$(@D)/bin/python -m pip uninstall --quiet --yes torchvision 2>/dev/null
	@touch $@

$(LLAMA_BINARY): | $(PEERS)/.installed
	@echo "Building llama.cpp: 10 to 25 minutes, once"
	@mkdir -p $(PEERS)/llama.cpp/sdist
	@$(PEERS)/bin/python -m pip install --quiet --quiet scikit-build-core cmake ninja
	@PATH=$(PEERS_ABS)/bin:$$PATH $(PEERS)/bin/python -m pip download --quiet --no-deps --no-build-isolation \
	    --no-binary llama-cpp-python --dest $(PEERS)/llama.cpp/sdist $(LLAMA_SDIST)
	@tar xzf $(PEERS)/llama.cpp/sdist/llama_cpp_python-*.tar.gz -C $(PEERS)/llama.cpp/sdist
	@ln -sfn $$(cd $(PEERS)/llama.cpp/sdist/llama_cpp_python-*/vendor/llama.cpp && pwd) $(PEERS)/llama.cpp/source
	@PATH=$(PEERS_ABS)/bin:$$PATH cmake -S $(PEERS)/llama.cpp/source -B $(PEERS)/llama.cpp/build -G Ninja \
	    -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
	    -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_NUMBER=0 \
	    -DLLAMA_BUILD_COMMIT=$(LLAMA_SDIST) >$(PEERS)/llama.cpp/cmake.log
	@PATH=$(PEERS_ABS)/bin:$$PATH cmake --build $(PEERS)/llama.cpp/build --target llama-server llama-quantize llama-batched-bench \
	    >$(PEERS)/llama.cpp/build.log || { tail -30 $(PEERS)/llama.cpp/build.log >&2; exit 1; }

build: install ## a wheel, in dist/
	@$(PIP) wheel --quiet --quiet --no-build-isolation --no-deps --wheel-dir dist .
	@ls dist/*.whl

model: install ## train the bundled model again, about an hour on 2 cores
	$(BIN)/python -m model_store.recipe $(ARGS)

slow: install ## the tests that take longer
	@$(PIP) install --quiet --quiet -c constraints.txt --no-build-isolation --editable '.[clients]'
	$(BIN)/python -m pytest -m "slow and not soak" $(ARGS)

soak: install ## requests alone and in crowds, every token and logprob compared, 12 minutes of processor time
	$(BIN)/python -m pytest -m soak tests/soak $(ARGS)

# mypy knows no install hooks: links show it the folders under the names that they are imported by.
TYPES := $(VENV)/types

check: install ## lint, formatting, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TYPES) && mkdir -p $(TYPES)/paged_backend
	ln -s $(CURDIR)/paged_backend/* $(CURDIR)/kernels $(CURDIR)/handlers $(TYPES)/paged_backend/
	ln -s $(CURDIR)/benchmarks $(CURDIR)/model_store $(TYPES)/
	cd $(TYPES) && $(CURDIR)/$(BIN)/mypy --strict --config-file $(CURDIR)/pyproject.toml \
	    --cache-dir $(CURDIR)/.mypy_cache -p paged_backend -p benchmarks
	$(BIN)/python -m pytest -q tests/test_floors.py tests/test_public_names.py

format: install ## put the sources into the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built, not .venv
	rm -rf build dist logs .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv, .venv-peers and .venv-eval too
	rm -rf $(VENV) $(PEERS) $(EVAL)
