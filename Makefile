# nibble: `make` builds ./nibble; `make demo` and `make test` install what they need first.
# Objects of each flavour live apart (build/release, build/asan, ...), so switching never needs a clean.

.DEFAULT_GOAL := all
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/sh

FLAVOUR ?= release
CC := $(if $(filter default undefined,$(origin CC)),gcc,$(CC))
BUILD := build/$(FLAVOUR)
PREFIX ?= /usr/local
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

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
CFLAGS_ALL := -std=gnu17 -D_GNU_SOURCE -I. $(WARN) $(OPT) -ffp-contract=off -fno-math-errno -pthread -MMD -MP $(CFLAGS)
LIBS := -lcjson -lzstd -lpcre2-8 -lutf8proc -lxxhash -lm -pthread
LDFLAGS_ALL := $(OPT) $(LDFLAGS)

COMMON_SOURCES := $(wildcard core/*.c kernels/*.c kernels/cpu/*.c kernels/cpu/ref/*.c quant/*.c autograd/*.c data/*.c)
TRAIN_SOURCES := $(filter-out train/main.c,$(wildcard train/*.c))
SIMD_SOURCES := $(wildcard kernels/cpu/simd/*.c)

ARCH := $(shell uname -m)
# One source, one object per instruction set; SIMD_NAME makes the symbols differ. Dispatch is by CPUID at run time.
SIMD_ISAS := $(if $(filter x86_64,$(ARCH)),avx2 avx512,)
SIMD_FLAGS_avx2 := -mavx2 -mfma -mf16c -O3 -DSIMD_NAME=avx2 -DSIMD_WIDTH=8
SIMD_FLAGS_avx512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -O3 -mprefer-vector-width=512 -DSIMD_NAME=avx512 -DSIMD_WIDTH=16

COMMON_OBJECTS := $(COMMON_SOURCES:%.c=$(BUILD)/%.o) $(TRAIN_SOURCES:%.c=$(BUILD)/%.o)
SIMD_OBJECTS := $(foreach isa,$(SIMD_ISAS),$(SIMD_SOURCES:%.c=$(BUILD)/%.$(isa).o))
LIBRARY := $(BUILD)/libnibble.a
BINARY := $(if $(filter release,$(FLAVOUR)),nibble,$(BUILD)/nibble)

.PHONY: all
all: $(BINARY)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -c $< -o $@

define simd_rule
$$(BUILD)/%.$(1).o: %.c
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS_ALL) $$(SIMD_FLAGS_$(1)) -c $$< -o $$@
endef
$(foreach isa,$(SIMD_ISAS),$(eval $(call simd_rule,$(isa))))

$(LIBRARY): $(COMMON_OBJECTS) $(SIMD_OBJECTS)
	@rm -f $@
	ar rcs $@ $^

# main.o refers to the commands weakly, which pulls nothing out of an archive: their objects are named.
$(BINARY): $(BUILD)/train/main.o $(filter $(BUILD)/train/cmd_%.o,$(COMMON_OBJECTS)) $(LIBRARY)
	$(CC) $(LDFLAGS_ALL) $^ $(LIBS) -o $@

# ---- tests -----------------------------------------------------------------------------------------------------------
UNIT_TESTS := $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/test_*.c))
TEST_SUPPORT := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/support/*.c))

$(BUILD)/tests/%: $(BUILD)/tests/unit/%.o $(TEST_SUPPORT) $(LIBRARY)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) $^ -lcmocka $(LIBS) -o $@

.PRECIOUS: $(BUILD)/tests/unit/%.o $(BUILD)/%.o
.PHONY: unit-programs
unit-programs: $(UNIT_TESTS)

-include $(shell find build -name '*.d' 2>/dev/null)
