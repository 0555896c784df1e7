# Verbs for hands and for .ci/run; `make` lists them. Needs GNU make and Python 3.11 or 3.12, nothing else.

PYTHON  ?=
MEDS    ?=
WORKDIR ?= runs/demo
ARGS    ?=

VENV        := .venv
PARITY_VENV := .venv-parity
UV_VERSION  := 0.13.9
RUN         := $(VENV)/bin/python
PYTEST      := -m pytest -q --durations=10
# A process for each core; the tests of a file stay together, with what they share.
SIDE_BY_SIDE := -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
# Large arrays in huge pages: on Linux the demo's training step takes two thirds of the time, most of it page faults.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
MAKE_VENV   := make_venv.py $(if $(PYTHON),--python '$(PYTHON)')
# Any Python that runs will do to start make_venv.py, which looks for the one to install with.
define run_make_venv
@for python in '$(PYTHON)' python3 python3.12 python3.11; do \
  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 6))' 2>/dev/null; then \
    exec "$$python" $(MAKE_VENV) $(1); \
  fi; \
done; \
echo 'no python3 found; install Python 3.12 (Debian, Ubuntu: apt-get install python3 python3-venv)' >&2; exit 2
endef

.PHONY: force help setup demo scaling-sweep test test-slow test-hosts test-cluster test-parity lint format bench lock clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(VENV)/installed  ## make .venv with the pinned dependencies (PYTHON=/path/to/python3.12 to choose one)

# Asked for an interpreter, make cannot tell whether the environment has it; make_venv.py can.
$(VENV)/installed: requirements.lock setup.cfg pyproject.toml $(if $(PYTHON),force)
	$(call run_make_venv,--editable $(VENV) requirements.lock)

$(PARITY_VENV)/installed: requirements-parity.lock setup.cfg pyproject.toml $(if $(PYTHON),force)
	$(call run_make_venv,--editable $(PARITY_VENV) requirements-parity.lock)

demo: setup  ## synthetic events -> corpus -> model -> futures -> report (MEDS=dir for your own data, WORKDIR=runs/demo)
	$(RUN) -m experiments.demo --workdir '$(WORKDIR)' $(if $(MEDS),--meds '$(MEDS)')

scaling-sweep: setup  ## pilot, plan, trials, fits, family, report (CONFIG=study.py WORKDIR=runs/scaling LAUNCHER=slurm|jobset ARGS=--yes)
	$(RUN) -m experiments.scaling_sweep --config '$(or $(CONFIG),experiments/configs/scaling_world.py)' \
	  --workdir '$(if $(filter file,$(origin WORKDIR)),runs/scaling,$(WORKDIR))' --launcher '$(or $(LAUNCHER),local)' $(ARGS)

test: setup  ## all tests but the slow ones (ARGS='tests/cometjax -k resume' to choose, ARGS=-n0 for one process)
	JAX_PLATFORMS=cpu $(RUN) $(PYTEST) -m 'not slow' --ignore=tests/parity $(SIDE_BY_SIDE) $(ARGS)

test-slow: setup  ## the tests that take minutes
	JAX_PLATFORMS=cpu $(RUN) $(PYTEST) -m slow --timeout=1800 --ignore=tests/parity $(ARGS)

test-hosts: setup  ## a run of several processes: losses, rows, kills, other numbers (as root on hosts of their own too)
	JAX_PLATFORMS=cpu $(RUN) $(PYTEST) -m slow --timeout=600 tests/cometjax/processes_test.py $(ARGS)

test-cluster: setup  ## a preempted job on a real Slurm (installs Debian's slurm-wlm and munge where missing; needs root)
	@command -v slurmctld munged >/dev/null || { apt-get update -qq && apt-get install -y -qq slurm-wlm munge; }
	JAX_PLATFORMS=cpu $(RUN) $(PYTEST) -m slow tests/experiments/launch/slurm_test.py $(ARGS)

test-parity: $(PARITY_VENV)/installed  ## compare the model with Hugging Face's (installs torch into .venv-parity)
	JAX_PLATFORMS=cpu $(PARITY_VENV)/bin/python $(PYTEST) tests/parity $(ARGS)

lint: setup  ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: setup  ## rewrite the code as ruff wants it
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

BENCHMARKS := $(basename $(notdir $(sort $(wildcard benchmarks/[a-z]*.py))))

bench: setup  ## every benchmark, each ending with a line of JSON (BENCH=decode for one)
	@for name in $(filter-out $(BENCHMARKS),$(BENCH)); do \
	  echo "no benchmark is called $$name; BENCH is of: $(BENCHMARKS)" >&2; exit 2; \
	done
	@for name in $(or $(BENCH),$(BENCHMARKS)); do \
	  echo "benchmarks.$$name"; $(RUN) -m "benchmarks.$$name" $(ARGS) || exit; \
	done

lock: setup  ## pin anew what setup.cfg asks for (ARGS=--upgrade to move to the newest versions)
	$(RUN) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(call compile,requirements.lock,--extra build --extra test --extra evaluation --extra lint)
	$(call compile,requirements-parity.lock,--extra build --extra test --extra parity --constraint requirements.lock)

# One file for every supported Python and platform (environment markers), no index named in it.
compile = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url \
	  --annotation-style line --custom-compile-command 'make lock' $(2) $(ARGS) setup.cfg --output-file $(1)

clean:  ## remove the environments and caches; runs/ stays
	rm -rf $(VENV) $(PARITY_VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
