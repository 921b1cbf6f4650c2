# nibble: `make` builds ./nibble; `make demo` and `make test` install what they need first.
# Objects of each flavour live apart (build/release, build/asan, ...), so switching never needs a clean.


.DEFAULT_GOAL := all
MAKEFLAGS += --no-builtin-rules --no-print-directory
SHELL := /bin/sh

FLAVOUR ?= release
CC := $(if $(filter default undefined,$(origin CC)),$(if $(filter fuzz,$(FLAVOUR)),clang,gcc),$(CC))
BUILD := build/$(FLAVOUR)$(if $(filter-out fuzz,$(FLAVOUR)),$(if $(findstring clang,$(CC)),-clang))
PREFIX ?= /usr/local
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
FUZZ_SECONDS ?= 10

WARN := -Wall -Wextra -Wshadow -Wconversion -Werror
OPT_release := -O2 -g
OPT_asan := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
OPT_ubsan := -O1 -g -fsanitize=undefined -fno-sanitize-recover=all
OPT_tsan := -O1 -g -fsanitize=thread
OPT_fuzz := -O1 -g -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=all
OPT := $(OPT_$(FLAVOUR))
ifeq ($(OPT),)
$(error unknown FLAVOUR '$(FLAVOUR)': want release, asan, ubsan, tsan or fuzz)
endif

# IEEE arithmetic everywhere: quantized bytes and resumed runs are compared bit for bit.
CFLAGS_ALL := -std=gnu17 -D_GNU_SOURCE= -I. $(WARN) $(OPT) -ffp-contract=off -fno-math-errno -pthread -MMD -MP $(CFLAGS)
LIBS := -lcjson -lzstd -lz -lpcre2-8 -lutf8proc -lxxhash -lm -ldl -pthread
LDFLAGS_ALL := $(OPT) $(LDFLAGS)

COMMON_SOURCES := $(wildcard core/*.c kernels/*.c kernels/cpu/*.c kernels/cpu/ref/*.c quant/*.c autograd/*.c data/*.c)
TRAIN_SOURCES := $(filter-out train/main.c train/comm_mpi.c train/comm_nccl.c,$(wildcard train/*.c))
SIMD_PAIRS_ONLY := $(addprefix kernels/cpu/simd/,gemm_pairs.c dots_pairs.c pairs_probe.c)
SIMD_TILES_ONLY := $(addprefix kernels/cpu/simd/,gemm_tiles.c tiles_probe.c)
SIMD_SOURCES := $(filter-out $(SIMD_PAIRS_ONLY) $(SIMD_TILES_ONLY),$(wildcard kernels/cpu/simd/*.c))
# With AVX512_BF16 only the matrix products differ; the rest is AVX-512's.
SIMD_PRODUCTS := $(SIMD_PAIRS_ONLY) $(addprefix kernels/cpu/simd/,unit_rate.c gemm.c gemm_kernel.c gemm_pack.c operand.c linear.c head.c head_flash.c \
	attention.c attention_parts.c attention_one.c attention_backward.c install.c)
# With AMX only the large products.
SIMD_TILED := $(SIMD_TILES_ONLY) $(filter-out %/attention.c %/attention_parts.c %/attention_one.c %/attention_backward.c %/pairs_probe.c,$(SIMD_PRODUCTS))

ARCH := $(shell uname -m)
# One source, one object per instruction set; SIMD_NAME makes the symbols differ. Dispatch is by CPUID at run time.
SIMD_ISAS := $(if $(filter x86_64,$(ARCH)),avx2 avx512 avx512bf16 amx,)
SIMD_SOURCES_avx2 := $(SIMD_SOURCES)
SIMD_SOURCES_avx512 := $(SIMD_SOURCES)
SIMD_SOURCES_avx512bf16 := $(SIMD_PRODUCTS)
SIMD_SOURCES_amx := $(SIMD_TILED)
SIMD_SOURCES_amx_emulated := $(SIMD_TILED)
SIMD_FLAGS_avx2 := -mavx2 -mfma -mf16c -O3 -DSIMD_NAME=avx2 -DSIMD_WIDTH=8
SIMD_FLAGS_avx512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -O3 -mprefer-vector-width=512 -DSIMD_NAME=avx512 -DSIMD_WIDTH=16
SIMD_FLAGS_avx512bf16 := -mavx512bf16 $(filter-out -DSIMD_NAME=%,$(SIMD_FLAGS_avx512)) -DSIMD_NAME=avx512bf16
SIMD_FLAGS_amx := -mamx-tile -mamx-bf16 -DSIMD_TILES $(filter-out -DSIMD_NAME=%,$(SIMD_FLAGS_avx512bf16)) -DSIMD_NAME=amx
SIMD_FLAGS_amx_emulated := -include tests/support/tiles_emulated.h $(filter-out -DSIMD_NAME=%,$(SIMD_FLAGS_amx)) -DSIMD_NAME=amx_emulated

COMMON_OBJECTS := $(COMMON_SOURCES:%.c=$(BUILD)/%.o) $(TRAIN_SOURCES:%.c=$(BUILD)/%.o)
SIMD_OBJECTS := $(foreach isa,$(SIMD_ISAS),$(SIMD_SOURCES_$(isa):%.c=$(BUILD)/%.$(isa).o))
LIBRARY := $(BUILD)/libnibble.a
BINARY := $(if $(filter build/release,$(BUILD)),nibble,$(BUILD)/nibble)

.PHONY: all
all: $(BINARY)

# Rewritten only when the compiler or its flags change: then every object is stale.
STAMP := $(BUILD)/flags
FLAGS_NOW := $(CC) $(CFLAGS_ALL) $(foreach isa,$(SIMD_ISAS),$(SIMD_FLAGS_$(isa)))
.PHONY: always
always:
$(STAMP): always
	@mkdir -p $(@D)
	@printf '%s\n' '$(FLAGS_NOW)' | cmp -s - $@ || printf '%s\n' '$(FLAGS_NOW)' >$@

# What is missing is named before the first compiler error.
LIBRARIES := $(BUILD)/libraries
$(LIBRARIES): $(STAMP)
	@sh tests/tools/install_deps.sh check '$(CC)'
	@touch $@

$(BUILD)/%.o: %.c $(STAMP) | $(LIBRARIES)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -c $< -o $@

define simd_rule
$$(BUILD)/%.$(1).o: %.c $$(STAMP) | $$(LIBRARIES)
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS_ALL) $$(SIMD_FLAGS_$(1)) -c $$< -o $$@
endef
$(foreach isa,$(SIMD_ISAS) amx_emulated,$(eval $(call simd_rule,$(isa))))

$(LIBRARY): $(COMMON_OBJECTS) $(SIMD_OBJECTS)
	@rm -f $@
	ar rcs $@ $^

$(BINARY): $(BUILD)/train/main.o $(LIBRARY)
	$(CC) $(LDFLAGS_ALL) $^ $(LIBS) -o $@

include train/comm.mk

# What was found besides; the CUDA plugin takes minutes, so it waits until it is asked for.
.PHONY: found bench
found: $(BINARY) $(PLUGINS)
	@$(if $(findstring s,$(firstword -$(MAKEFLAGS))),:,echo) 'nibble: MPI $(if $(MPI_PLUGIN),found,not found), NCCL $(if $(NCCL_HEADER),found,not found), CUDA $(if $(NVCC),found: "make cuda" builds its plugin,not found)'
all: found

# This machine's ceilings, and a training step beside them.
bench: all
	./$(BINARY) bench cpu
	./$(BINARY) bench ceiling
	./$(BINARY) bench linear --tokens 512
	./$(BINARY) bench step --arch configs/arch/smollm-135m.json --device cpu
	./$(BINARY) bench generate --arch configs/arch/tinyllama-1.1b.json

.PHONY: install
install: all
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/nibble
	$(foreach plugin,$(PLUGINS),install -D -m 755 $(plugin) $(DESTDIR)$(PREFIX)/lib/nibble/$(notdir $(plugin)) &&) true

# ---- what the machine needs --------------------------------------------------------------------------------------------
.PHONY: deps-build deps-test deps-ci
deps-build deps-test deps-ci: deps-%:
	@sh tests/tools/install_deps.sh $*

# ---- tests -------------------------------------------------------------------------------------------------------------
UNIT_TESTS := $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/test_*.c))
TEST_SUPPORT := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/support/*.c))
# AMX's products with its instructions in plain C, for the tests on processors without it.
ifeq ($(ARCH),x86_64)
EMULATED_TILES := $(SIMD_SOURCES_amx_emulated:%.c=$(BUILD)/%.amx_emulated.o)
$(filter $(BUILD)/tests/test_simd_%,$(UNIT_TESTS)): $(EMULATED_TILES)
endif
FUZZERS := $(patsubst tests/fuzz/%.c,$(BUILD)/%,$(wildcard tests/fuzz/fuzz_*.c))

$(UNIT_TESTS): $(BUILD)/tests/%: $(BUILD)/tests/unit/%.o $(TEST_SUPPORT) $(LIBRARY)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) $^ -lcmocka $(LIBS) -o $@

# What the scripts of tests/peers run.
PEERS := $(patsubst tests/peers/%.c,$(BUILD)/peers/%,$(wildcard tests/peers/*.c))
$(PEERS): $(BUILD)/peers/%: $(BUILD)/tests/peers/%.o $(BUILD)/tests/support/replay.o $(LIBRARY)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) $^ $(LIBS) -o $@

$(FUZZERS): $(BUILD)/%: $(BUILD)/tests/fuzz/%.o $(LIBRARY)
	$(CC) $(LDFLAGS_ALL) -fsanitize=fuzzer $^ $(LIBS) -o $@

.PRECIOUS: $(BUILD)/%.o
.PHONY: unit-programs fuzz-programs
unit-programs: $(UNIT_TESTS)
fuzz-programs: $(FUZZERS)
.PHONY: peers-programs
peers-programs: $(PEERS)

include kernels/cuda/cuda.mk

# A second make, so that what was just installed is seen, on all cores unless -j said otherwise.
AGAIN = +$(MAKE) $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(JOBS))

.PHONY: test test-asan test-ubsan fuzz
test: deps-test
	$(AGAIN) all unit-programs $(DEVICE_FOR_TESTS)
	tests/tools/run_tests.sh $(BUILD) tests/tools/test_*.sh tests/e2e/*.sh

test-asan test-ubsan: test-%: deps-test
	$(AGAIN) FLAVOUR=$* unit-programs
	$(MAKE) FLAVOUR=$* unit-run

# Compares results with transformers, PEFT and bitsandbytes in the Python that PEERS_PYTHON names.
PEERS_PYTHON ?= python3
.PHONY: peers
peers:
	$(AGAIN) peers-programs
	PEERS_PYTHON=$(PEERS_PYTHON) tests/peers/run.sh $(BUILD)

# Products, steps, generation, and quantizers, beside theirs in one run.
.PHONY: bench-peers
bench-peers:
	$(AGAIN) all peers-programs
	$(PEERS_PYTHON) tests/peers/bench_linear.py ./$(BINARY)
	$(PEERS_PYTHON) tests/peers/bench_cpu.py ./$(BINARY)
	$(PEERS_PYTHON) tests/peers/bench_generate.py ./$(BINARY)
	$(PEERS_PYTHON) tests/peers/quantizer_speed.py $(BUILD)

.PHONY: unit-run
unit-run:
	UBSAN_OPTIONS=print_stacktrace=1 tests/tools/run_tests.sh $(BUILD)

fuzz: deps-ci
	$(AGAIN) FLAVOUR=fuzz fuzz-programs
	tests/tools/run_fuzz.sh build/fuzz $(FUZZ_SECONDS)

# ---- the demo ----------------------------------------------------------------------------------------------------------
.PHONY: demo demo-data demo-base
demo: deps-build
	@echo 'Building nibble ...'
	@$(AGAIN) --silent all
	@sh tests/tools/demo.sh ./$(BINARY)

DEMO_WORLD := build/demo/world
$(DEMO_WORLD): $(wildcard configs/demo/source/*.[ch])
	@mkdir -p $(@D)
	$(CC) -std=gnu17 -O2 $(WARN) $(filter %.c,$^) -o $@

demo-data: $(DEMO_WORLD)
	$(DEMO_WORLD) build/demo
	cp build/demo/train.jsonl build/demo/held_out.jsonl configs/demo
	cp build/demo/tokenizer.json configs/demo/base

demo-base: demo-data all
	./$(BINARY) train configs/demo/base.json
	cp build/demo/base/model/model.safetensors configs/demo/base

# ---- the source itself -------------------------------------------------------------------------------------------------
SOURCE_FOLDERS := core kernels quant autograd data train tests configs
SOURCE_FILES = $(shell find $(SOURCE_FOLDERS) -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cpp')

.PHONY: check-includes format format-check tidy
check-includes:
	tests/tools/check_includes.sh

format:
	tests/tools/format.sh -i $(SOURCE_FILES)

format-check:
	tests/tools/format.sh --dry-run --Werror $(SOURCE_FILES)

# tidy_files FILES, FLAGS
tidy_files = printf '%s\n' $(1) | xargs -P $(JOBS) -n 4 sh -c 'exec clang-tidy --quiet "$$@" -- $(filter-out -MMD -MP -Werror,$(CFLAGS_ALL)) $(2)' tidy
tidy:
	@$(call tidy_files,$(filter-out $(SIMD_SOURCES),$(filter %.c,$(SOURCE_FILES))))
	@$(foreach isa,$(SIMD_ISAS),$(call tidy_files,$(SIMD_SOURCES),$(SIMD_FLAGS_$(isa))) &&) true

.PHONY: help
help:
	@echo 'make                 builds ./nibble'
	@echo 'make demo            installs what is missing, builds, and teaches a small model to answer questions, in a minute'
	@echo 'make test            installs what is missing (root or sudo), builds, runs every test'
	@echo 'make test-asan       the unit tests under AddressSanitizer and UBSan; test-ubsan: UBSan alone'
	@echo 'make fuzz            every fuzz target for FUZZ_SECONDS ($(FUZZ_SECONDS)) each; needs clang'
	@echo 'make emu-test        the CUDA kernels on the CPU: schedules, sanitizers, race checker; needs the CUDA toolkit'"'"'s headers'
	@echo 'make cuda-objects    the CUDA kernels through nvcc for every architecture, spills refused'
	@echo 'make cuda            libnibble_cuda.so for --device cuda (nvcc); make emu: libnibble_emu.so for --device emu'
	@echo 'make test-gpu        kernels and runs on a GPU of this machine; bench-gpu: measurements, one table'
	@echo 'make peers           results against transformers, PEFT and bitsandbytes in PEERS_PYTHON ($(PEERS_PYTHON))'
	@echo 'make bench           the machine'"'"'s ceilings, linears, a training step and generation beside them'
	@echo 'make bench-peers     products, training steps, generation and quantizers beside theirs on this CPU, in one run'
	@echo 'make check-includes  folders include each other only downwards'
	@echo 'make format          rewrites the source with clang-format; format-check only looks; tidy runs clang-tidy'
	@echo 'make demo-base       makes the demo'"'"'s base model again: text, tokenizer, questions, weights (some minutes)'
	@echo 'make install         into PREFIX ($(PREFIX))'
	@echo 'make deps-build      installs what building needs; deps-test and deps-ci install more'
	@echo 'Variables: CC, CFLAGS, LDFLAGS, FLAVOUR (release, asan, ubsan, tsan, fuzz), JOBS, PREFIX, DESTDIR'

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
