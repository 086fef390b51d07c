# Everything on a fresh machine with Python (3.12, 3.13, 3.14 or 3.11) and make:  make quickstart,  make test

# The first of these that runs; `pyenv` has names of Pythons that it does not run.
ifndef PYTHON
PYTHON := $(firstword $(foreach p,python3.12 python3.13 python3.14 python3.11 python3,\
  $(shell $(p) -c 'import sys; print(sys.executable)' 2>/dev/null)))
endif
VENV   ?= .venv
JOBS   ?= 2
PY     := $(VENV)/bin/python
# What JAX is installed for: cpu, cuda12 or cuda13. It stays what it is in an environment that
# exists. In a new one it is what the GPUs of this machine and their driver run.
INSTALLED := $(patsubst $(VENV)/.installed-%,%,$(wildcard $(VENV)/.installed-*))
ifndef ACCELERATOR
ACCELERATOR := $(or $(firstword $(INSTALLED)),$(shell $(PYTHON) -m experiments.run.machine),cpu)
endif
ifeq ($(filter cpu cuda12 cuda13,$(ACCELERATOR)),)
$(error ACCELERATOR must be cpu, cuda12 or cuda13, got $(ACCELERATOR))
endif
LOCK   := requirements$(if $(filter cpu,$(ACCELERATOR)),,-$(ACCELERATOR)).lock
READY  := $(VENV)/.installed-$(ACCELERATOR)
OTHER  := $(filter-out $(ACCELERATOR),$(INSTALLED))
PIP    := -m pip install --quiet --disable-pip-version-check
# Each process gets neighbouring tests, which share their fixtures, and takes over others at the end.
PYTEST := $(PY) -m pytest -n $(JOBS) --dist=worksteal

.PHONY: help env quickstart test test-fast test-isa test-slow test-flax test-interpreted test-prepare test-onnx test-wheel wheel test-compiled inspect emulate sanitize chaos docs links lint format lock clean

help:
	@echo "make env          install into $(VENV): ACCELERATOR=cpu, cuda12 or cuda13 (here: $(ACCELERATOR))"
	@echo "make quickstart   install, train a small LR-Net on embedded images, evaluate and draw it (minutes)"
	@echo "make test         install, run the tests"
	@echo "make test-fast    some tests of every package in two minutes, while you change something"
	@echo "make test-isa     the tests that compute, with instructions of another processor: ISA=SSE4_2, AVX"
	@echo "make test-slow    the long random sweeps, which CI runs once"
	@echo "make test-flax    the tests of networks, as the next Flax will run modules by default"
	@echo "make test-interpreted  all tests of the operator with the GPU kernels in interpret mode (most of an hour)"
	@echo "make test-compiled compile GPU kernels for GPUs that are not here: spills, instructions"
	@echo "make emulate      execute compiled GPU kernels on the CPU; needs ptxsim in the folder PTXSIM=..."
	@echo "make sanitize     the C++ implementation under AddressSanitizer and ThreadSanitizer (minutes)"
	@echo "make test-prepare ImageNet from miniature tars to an evaluation, with TensorFlow in its own environment"
	@echo "make test-onnx    the export to ONNX, with its converter and onnxruntime"
	@echo "make test-wheel   the library's wheel alone, with its own dependencies only"
	@echo "make wheel        wheels with the C++ implementation, for this platform, and without, for all"
	@echo "make inspect      NVIDIA's compiler, to look at the GPU kernels without a GPU"
	@echo "make chaos        kill runs at random moments, corrupt checkpoints, fill disks (CHAOS_KILLS=20)"
	@echo "make docs         the documentation site, with its notebooks executed"
	@echo "make links        whether the links to other sites are answered; needs the internet"
	@echo "make lint         formatter, linter, type checker"
	@echo "make lock         resolve the dependencies again"
	@echo "PYTHON=python3.12 VENV=.venv-3.12 choose the interpreter and the environment, JOBS=8 the test processes"

env: $(READY)
	@echo "$(VENV) is ready, with JAX for $(ACCELERATOR); to make its commands those of this shell:"
	@echo "source $(VENV)/bin/activate"

# The C++ implementation is compiled by the last step, if there is a compiler.
$(READY): $(LOCK) pyproject.toml setup.py $(wildcard pallas_kernels/native/*.cc pallas_kernels/native/*.h pallas_kernels/native/build.py)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 15) else f"lrnet-jax needs Python 3.11 to 3.14, $(PYTHON) is {v[0]}.{v[1]}; make PYTHON=python3.12")'
	$(if $(OTHER),@echo "$(VENV) has JAX for $(OTHER); it is made anew for $(ACCELERATOR)")
	$(PYTHON) -m venv $(if $(OTHER),--clear )$(VENV)
	$(PY) $(PIP) --require-hashes -r $(LOCK)
	$(PY) $(PIP) --no-deps --no-build-isolation -e .
	@touch $@

quickstart: $(READY)
	$(PY) -m experiments.train --config=quickstart --workdir=runs/quickstart
	$(PY) -m experiments.figures --run=runs/quickstart --out=runs/quickstart/figures

test: $(READY)
	$(PYTEST)

# These tests are for the inner loop: they touch every package and compile little.
FAST ?= tests/test_architecture.py tests/test_documents.py \
  tests/pallas_kernels/test_platform_switch.py tests/pallas_kernels/test_implementations.py \
  'tests/pallas_kernels/test_golden.py::test_golden[s02_partial_group-float32-None]' \
  'tests/pallas_kernels/test_problems.py::test_repeats_bit_for_bit[xla]' \
  tests/pallas_kernels/pallas/test_kernels.py::TestChoice \
  tests/pallas_kernels/pallas/lanes \
  tests/pallas_kernels/tools/test_shapes.py tests/pallas_kernels/tools/test_tune.py \
  tests/lrnet_jax/test_model_zoo.py tests/lrnet_jax/layers/test_batch_norm.py \
  'tests/lrnet_jax/test_networks.py::test_forward_backward_and_features[resnet26]' \
  'tests/lrnet_jax/test_networks.py::test_forward_backward_and_features[lrnet26]' \
  tests/lrnet_jax/data/test_order.py tests/lrnet_jax/data/test_prefetch.py \
  tests/lrnet_jax/data/test_augment.py tests/lrnet_jax/data/test_decode.py \
  tests/lrnet_jax/data/test_records.py tests/lrnet_jax/training/test_optimizer.py \
  tests/lrnet_jax/training/test_accumulation.py tests/lrnet_jax/training/test_stopping.py \
  tests/lrnet_jax/training/test_metric_writers.py tests/lrnet_jax/training/test_display.py \
  tests/lrnet_jax/training/test_checkpoints.py \
  tests/lrnet_jax/training/test_steps.py::test_targets_of_mixed_images \
  tests/lrnet_jax/training/test_steps.py::test_step_is_sgd_with_momentum_and_decay_on_weights_only \
  tests/experiments/test_config.py tests/experiments/test_tables.py tests/experiments/cli \
  tests/experiments/report tests/experiments/recipes/test_study_rows.py \
  tests/experiments/run/test_workdir.py tests/experiments/bench/test_input_files.py \
  tests/experiments/test_train.py::test_a_run_leaves_what_it_should
test-fast: $(READY)
	$(PYTEST) $(FAST)

# These tests compute. They run at the compiler's default level and as if the processor had other
# instructions. Without fused multiply-add, for one, every product is rounded before it is added. (The
# libraries that multiply matrices and convolve choose their instructions themselves.) A test that
# passes by the rounding of one processor fails here. XLA has no float16 on CPUs without F16C
# ("Symbols not found: __extendhfsf2"), so its four tests are left out. Of the networks, which are made
# of the same layers, three stand for all.
ISA ?= SSE4_2
NO_FLOAT16 := (not float16 or bfloat16)
FEW_NETWORKS := (not test_forward_backward or features[lrnet26] or features[resnet26] or features[lrnet26_nl])
NUMERICS := tests/pallas_kernels/test_golden.py tests/pallas_kernels/test_problems.py \
  tests/pallas_kernels/test_gradients.py tests/pallas_kernels/xla tests/lrnet_jax/layers tests/lrnet_jax/test_networks.py \
  tests/lrnet_jax/training/test_steps.py tests/lrnet_jax/training/test_attack.py
test-isa: $(READY)
	XLA_FLAGS="--xla_cpu_max_isa=$(ISA) --xla_backend_optimization_level=3" $(PYTEST) -k '$(NO_FLOAT16) and $(FEW_NETWORKS)' $(NUMERICS)

# What the next Flax does by default: modules are trees, and transforms do not update their arguments.
FLAX := tests/lrnet_jax/layers tests/lrnet_jax/test_networks.py tests/lrnet_jax/test_visualize.py \
  tests/lrnet_jax/test_classifier.py tests/lrnet_jax/test_complexity.py \
  tests/lrnet_jax/training/test_checkpoints.py tests/lrnet_jax/training/test_drop_path.py \
  tests/lrnet_jax/training/test_steps.py tests/experiments/test_train.py
test-flax: $(READY)
	NNX_GRAPH_MODE=false NNX_GRAPH_UPDATES=false $(PYTEST) $(FLAX)

test-slow: $(READY)
	$(PYTEST) -m 'slow and not interpreted'

# CI runs tests/pallas_kernels/pallas/test_kernels.py instead, which covers every option with small
# tiles, and the emulator.
test-interpreted: $(READY)
	$(PYTEST) -m interpreted tests/pallas_kernels

# The CUDA plugin compiles without a GPU, the rest of the group `inspect` assembles and disassembles.
# Kept out of the environment, where JAX would try to use a GPU.
CUDA := build/cuda
inspect: $(CUDA)/.installed
	@echo "NVIDIA's compiler is in $(CUDA); for example:"
	@echo "JAX_PLATFORMS=cpu PYTHONPATH=$(CUDA) $(PY) -m pallas_kernels.tools.instruction_counts"

$(CUDA)/.installed: $(READY)
	rm -rf $(CUDA) && mkdir -p $(CUDA)
	$(PY) -c 'import jax, tomllib; v = jax.__version__; \
	  project = tomllib.load(open("pyproject.toml", "rb")); \
	  triton = [x for x in project["project"]["optional-dependencies"]["cuda12"] if "triton" in x]; \
	  inspect = project["dependency-groups"]["inspect"]; \
	  print(*inspect, *triton, f"jax-cuda12-plugin=={v}", f"jax-cuda12-pjrt=={v}", sep="\n")' > $(CUDA)/requirements.txt
	$(PY) $(PIP) --no-deps --target=$(CUDA) -r $(CUDA)/requirements.txt
	@touch $@

PTXSIM ?= .
test-compiled: $(CUDA)/.installed
	JAX_PLATFORMS=cpu PYTHONPATH=$(CUDA):$(PTXSIM) $(PYTEST) tests/pallas_kernels/tools/test_cross_compilation.py \
	  tests/pallas_kernels/tools/test_empty_kernels.py tests/experiments/bench/test_step_time.py \
	  tests/pallas_kernels/pallas/stem tests/pallas_kernels/pallas/projections \
	  tests/pallas_kernels/jax_triton tests/pallas_kernels/tools/test_tune.py \
	  tests/lrnet_jax/test_without_pallas.py

EMULATED_TRITON ?= odd/partial_group,odd/multiplication_depth16,odd/no_softmax
EMULATED ?= odd/partial_group,odd/dilation3_stride2,odd/multiplication_depth16,odd/rounds_of_images
emulate: $(CUDA)/.installed
	PYTHONPATH=$(CUDA):$(PTXSIM) $(PY) -m tests.pallas_kernels.pallas.emulate --shapes='$(EMULATED)' --arch=9.0 \
	  --strip=2 --warps=1
	PYTHONPATH=$(CUDA):$(PTXSIM) $(PY) -m tests.pallas_kernels.pallas.stem.emulate_stem
	PYTHONPATH=$(CUDA):$(PTXSIM) $(PY) -m tests.pallas_kernels.pallas.emulate --shapes='$(EMULATED_TRITON)' --arch=8.0,9.0 \
	  --strip=2 --warps=1 --implementation=jax_triton

PROBLEMS ?= 500
sanitize: $(READY)
	$(PY) -m tests.pallas_kernels.native.sanitize --problems=$(PROBLEMS)

# Everything but this trains and evaluates without TensorFlow.
test-prepare: $(VENV)-prepare/.installed
	$(VENV)-prepare/bin/python -m pytest tests/experiments/prepare tests/experiments/test_prepare_imagenet.py
	$(VENV)-prepare/bin/python -m pytest -m slow -k built tests/experiments/test_imagenet_end_to_end.py

$(VENV)-prepare/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)-prepare
	$(VENV)-prepare/bin/python $(PIP) --require-hashes -r requirements.lock
	$(VENV)-prepare/bin/python $(PIP) --no-build-isolation -e '.[prepare]'
	@touch $@

# Few packages, beside those of the environment. Without them the tests are skipped, so they are
# imported first.
ONNX := $(VENV)/.onnx
$(ONNX): $(READY) requirements-onnx.lock
	$(PY) $(PIP) --no-deps --require-hashes -r requirements-onnx.lock
	@touch $@
test-onnx: $(ONNX)
	$(PY) -c 'import jax2onnx, onnxruntime'
	$(PY) -m pytest tests/experiments/run/test_onnx_file.py

CHAOS_KILLS ?= 20
chaos: $(READY)
	CHAOS_KILLS=$(CHAOS_KILLS) $(PY) -m pytest -s -m "slow or not slow" tests/experiments/test_kills.py tests/lrnet_jax/training/test_damage.py tests/experiments/run/test_workdir.py tests/experiments/test_interruptions.py tests/experiments/test_replay.py

# Notebooks are executed, and a warning is an error. What did not change is not executed again.
DOCS := $(VENV)/.docs
$(DOCS): $(READY) requirements-docs.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.lock
	@touch $@
docs: $(DOCS)
	JAX_PLATFORMS=cpu PYTHONPATH=$(CURDIR) $(PY) -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "open build/docs/index.html"

# Not part of CI, which must not fail because another site is down.
links: $(DOCS)
	JAX_PLATFORMS=cpu PYTHONPATH=$(CURDIR) $(PY) -m sphinx -q -b linkcheck -D nb_execution_mode=off docs build/links

lint: $(READY)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: $(READY)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

# uv is not part of the environment: python -m pip install uv
COMPILE := uv pip compile --quiet --universal --python-version=3.11 --no-annotate --no-header --generate-hashes
RESOLVE := $(COMPILE) --extra train --extra dev pyproject.toml
lock:
	$(RESOLVE) -o requirements.lock
	cp requirements.lock requirements-docs.lock  # the same versions, and more
	$(RESOLVE) --extra docs -o requirements-docs.lock
	$(RESOLVE) --extra cuda12 -o requirements-cuda12.lock
	$(RESOLVE) --extra cuda13 -o requirements-cuda13.lock
	$(RESOLVE) --extra onnx --constraint=requirements.lock \
	  $$(sed -n 's/^\([a-zA-Z0-9_.-]*\)==.*/--no-emit-package=\1/p' requirements.lock | sort -u) > requirements-onnx.lock
	$(COMPILE) --no-deps --group=converter >> requirements-onnx.lock

# The library alone: the wheel and its dependencies in an environment of their own, of the versions
# that the environment of the checkout has.
CORE := $(abspath $(VENV))-wheel
test-wheel: $(READY)
	rm -rf build/lib build/wheel
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir=build/wheel .
	$(PY) -m pip freeze --exclude-editable > build/wheel/versions.txt
	$(PYTHON) -m venv --clear $(CORE)
	$(CORE)/bin/python $(PIP) --constraint=build/wheel/versions.txt build/wheel/lrnet_jax-*.whl
	cd build/wheel && $(CORE)/bin/python -I ../../tests/wheel_alone.py

# Without a name in CXX there is no compiler.
wheel: $(READY)
	rm -rf build/lib build/wheels
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir=build/wheels .
	rm -rf build/lib
	CXX= $(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir=build/wheels .
	ls build/wheels

clean:
	rm -rf $(VENV) $(VENV)-prepare $(VENV)-wheel build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
