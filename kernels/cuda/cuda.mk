# The CUDA side: kernels compiled by nvcc, and the same sources compiled by g++ for the emulator of tests/cuda_emu.
# Sources are found by wildcard: kernels/cuda/*.cu, tests/cuda_emu/*.cu and tests/cuda_emu/test_*.c need no line here.

NVCC ?= $(or $(shell command -v nvcc 2>/dev/null),$(wildcard /usr/local/cuda/bin/nvcc))
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(or $(realpath $(NVCC)),/usr/local/cuda/bin/nvcc))
CUDA_INCLUDE := $(CUDA_HOME)/include
NCCL_HEADER := $(firstword $(wildcard $(CUDA_INCLUDE)/nccl.h /usr/include/nccl.h /usr/local/include/nccl.h))
EMU_CXX ?= g++
EMU_CC ?= gcc

KERNEL_SOURCES := $(wildcard kernels/cuda/*.cu)
EMU_KERNELS := $(KERNEL_SOURCES) $(wildcard tests/cuda_emu/*.cu)
EMU_RUNTIME := $(filter-out $(if $(NCCL_HEADER),,%/nccl.cpp) %/race.cpp,$(wildcard tests/cuda_emu/*.cpp))
EMU_TESTS := $(wildcard tests/cuda_emu/test_*.c)
DEVICE_SOURCES := $(filter-out $(if $(NCCL_HEADER),,%/comm_nccl.c),$(wildcard kernels/cuda/*.c))

# ---- the emulator: three builds of the same sources --------------------------------------------------------------------
# plain; asan: AddressSanitizer and UBSan; race: every access of a kernel is checked by tests/cuda_emu/race.cpp, which
# answers the calls that -fsanitize=thread compiles in (only kernels are compiled so, and libtsan is not linked).
EMU_KERNEL_FLAGS_plain := -O2
EMU_KERNEL_FLAGS_asan := -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined
EMU_KERNEL_FLAGS_race := -O1 -fsanitize=thread,alignment,bounds,shift -fno-sanitize-recover=all
EMU_OTHER_FLAGS_asan := -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined
EMU_LINK_FLAGS_asan := -fsanitize=address,undefined
EMU_LINK_FLAGS_race := -fsanitize=undefined
EMU_EXTRA_race := tests/cuda_emu/race.cpp
EMU_CXXFLAGS := -std=c++20 -g -Wall -Wextra -Wno-unknown-pragmas -Werror -ffp-contract=off -I. -Itests/cuda_emu \
	-isystem $(CUDA_INCLUDE) -MMD -MP
EMU_CFLAGS := -std=gnu17 -D_GNU_SOURCE= -g -O1 -Wall -Wextra -Wshadow -Werror -ffp-contract=off -I. -isystem $(CUDA_INCLUDE) \
	-DEMU_NCCL=$(if $(NCCL_HEADER),1,0) -MMD -MP

# What the tests compare with: the reference and its support, without the folders above kernels/.
EMU_LIBRARY := $(BUILD)/libkernels.a
$(EMU_LIBRARY): $(filter $(BUILD)/core/% $(BUILD)/kernels/% $(BUILD)/quant/%,$(COMMON_OBJECTS) $(SIMD_OBJECTS)) $(TEST_SUPPORT)
	@rm -f $@
	@ar rcs $@ $^

# $(1): the build's name
define emu_build
EMU_OBJECTS_$(1) := $$(patsubst %,build/emu/$(1)/%.o,$$(EMU_KERNELS) $$(EMU_RUNTIME) $$(EMU_EXTRA_$(1)))
EMU_PROGRAMS_$(1) := $$(EMU_TESTS:tests/cuda_emu/%.c=build/emu/$(1)/%)
build/emu/$(1)/%.cu.o: %.cu
	@mkdir -p $$(@D)
	$$(EMU_CXX) -x c++ $$(EMU_CXXFLAGS) $$(EMU_KERNEL_FLAGS_$(1)) -c $$< -o $$@
build/emu/$(1)/%.cpp.o: %.cpp
	@mkdir -p $$(@D)
	$$(EMU_CXX) $$(EMU_CXXFLAGS) -O2 $$(EMU_OTHER_FLAGS_$(1)) -c $$< -o $$@
build/emu/$(1)/%.c.o: %.c
	@mkdir -p $$(@D)
	$$(EMU_CC) $$(EMU_CFLAGS) -DEMU_VARIANT='"$(1)"' $$(EMU_OTHER_FLAGS_$(1)) -c $$< -o $$@
build/emu/$(1)/libbackend.a: $$(patsubst %,build/emu/$(1)/%.o,$$(DEVICE_SOURCES))
	@rm -f $$@
	@ar rcs $$@ $$^
$$(EMU_PROGRAMS_$(1)): build/emu/$(1)/%: build/emu/$(1)/tests/cuda_emu/%.c.o build/emu/$(1)/libbackend.a $$(EMU_OBJECTS_$(1)) $$(EMU_LIBRARY)
	$$(EMU_CXX) $$(EMU_LINK_FLAGS_$(1)) $$^ -lcmocka $$(LIBS) -lrt -o $$@
.PRECIOUS: build/emu/$(1)/%.cu.o build/emu/$(1)/%.cpp.o build/emu/$(1)/%.c.o
endef
$(foreach build,plain asan race,$(eval $(call emu_build,$(build))))

.PHONY: cuda-headers cuda-compiler emu-programs emu-test
cuda-headers:
	@test -e $(CUDA_INCLUDE)/cuda_runtime_api.h && test -e $(CUDA_INCLUDE)/cublas_v2.h
cuda-compiler:
	@test -n "$(NVCC)"
emu-programs: $(EMU_PROGRAMS_plain) $(EMU_PROGRAMS_asan) $(EMU_PROGRAMS_race)
emu-test:
	@$(MAKE) -s cuda-headers || { echo 'emu-test: want the headers of the CUDA toolkit in $(CUDA_INCLUDE); name its folder with CUDA_HOME' >&2; exit 1; }
	$(AGAIN) emu-programs
	tests/cuda_emu/run.sh

# ---- nvcc --------------------------------------------------------------------------------------------------------------
CUDA_ARCHITECTURES ?= 80 86 89 90 100 120
comma := ,
# Those that this nvcc knows: an older toolkit makes a plugin for older devices. The last one's PTX is for newer ones.
NVCC_KNOWS = $(or $(filter $(patsubst compute_%,%,$(shell $(NVCC) --list-gpu-arch 2>/dev/null)),$(CUDA_ARCHITECTURES)),$(CUDA_ARCHITECTURES))
NVCC_FLAGS = -std=c++17 -O3 -lineinfo -I. --Werror all-warnings -Xptxas -v -Xcompiler -fPIC,-Wall,-Wno-unused-function,-ffp-contract=off \
	$(foreach arch,$(NVCC_KNOWS),-gencode arch=compute_$(arch)$(comma)code=sm_$(arch)) \
	-gencode arch=compute_$(lastword $(NVCC_KNOWS))$(comma)code=compute_$(lastword $(NVCC_KNOWS))
CUDA_OBJECTS := $(patsubst %.cu,build/cuda/%.o,$(EMU_KERNELS))
# The compiler's report (registers, spills) is kept beside the object.
build/cuda/%.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCC_FLAGS) -MMD -MF build/cuda/$*.d -c $< -o $@ 2>build/cuda/$*.ptxas || { cat build/cuda/$*.ptxas; exit 1; }

.PHONY: cuda-objects
cuda-objects:
	@test -n "$(NVCC)" || { echo 'cuda-objects: nvcc is not installed' >&2; exit 1; }
	$(AGAIN) $(CUDA_OBJECTS)
	kernels/cuda/check_spills.sh $(patsubst %.cu,build/cuda/%.ptxas,$(KERNEL_SOURCES))

# ---- the plugins -------------------------------------------------------------------------------------------------------
# libnibble_cuda.so: kernels by nvcc, the rest of kernels/cuda by gcc, cuBLAS and the CUDA runtime.
# libnibble_emu.so: the same sources by g++ with the emulator. Both stand beside the program, which links neither.
# Both sides are made from these headers: a plugin of another build is refused when it is loaded.
DEVICE_ID := $(shell cat kernels/cuda/plugin.h kernels/ops.h kernels/formats.h core/error.h | cksum | cut -d' ' -f1)
DEVICE_DEFINES := -DNIBBLE_DEVICE_ID='"$(DEVICE_ID)"'
DEVICE_FOLDER := $(patsubst %/,%,$(dir $(BINARY)))
$(BUILD)/train/device.o: train/device.c kernels/ops.h kernels/formats.h core/error.h $(STAMP) | $(LIBRARIES)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) $(DEVICE_DEFINES) -c $< -o $@
# What a plugin needs of nibble's own, once more as position-independent code with hidden names.
DEVICE_CORE := core/error.c core/dtype.c
DEVICE_FLAGS := -std=gnu17 -D_GNU_SOURCE= -g -O2 $(WARN) -ffp-contract=off -fPIC -fvisibility=hidden -I. -isystem $(CUDA_INCLUDE) \
	$(DEVICE_DEFINES) -MMD -MP
DEVICE_OBJECTS := $(patsubst %.c,build/device/%.o,$(DEVICE_SOURCES) $(DEVICE_CORE))
build/device/%.o: %.c kernels/cuda/plugin.h kernels/ops.h kernels/formats.h core/error.h
	@mkdir -p $(@D)
	$(EMU_CC) $(DEVICE_FLAGS) -c $< -o $@

build/device/kernels/cuda/comm_nccl.o: DEVICE_FLAGS += $(COMM_DEFINES)
build/device/kernels/cuda/comm_nccl.o: core/comm_plugin.h $(wildcard $(PLUGIN_SOURCES))

EMU_PLUGIN_OBJECTS := $(patsubst %,build/emu/plugin/%.o,$(KERNEL_SOURCES) $(EMU_RUNTIME))
build/emu/plugin/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(EMU_CXX) -x c++ $(EMU_CXXFLAGS) -O2 -fPIC -fvisibility=hidden -c $< -o $@
build/emu/plugin/%.cpp.o: %.cpp
	@mkdir -p $(@D)
	$(EMU_CXX) $(EMU_CXXFLAGS) -O3 -fPIC -fvisibility=hidden -c $< -o $@
.PRECIOUS: build/emu/plugin/%.cu.o build/emu/plugin/%.cpp.o
EMU_PLUGIN := $(DEVICE_FOLDER)/libnibble_emu.so
$(EMU_PLUGIN): $(DEVICE_OBJECTS) $(EMU_PLUGIN_OBJECTS)
	$(EMU_CXX) -shared -Wl,-Bsymbolic -Wl,--no-undefined $^ -lm -lpthread -o $@

CUDA_PLUGIN := $(DEVICE_FOLDER)/libnibble_cuda.so
$(CUDA_PLUGIN): $(DEVICE_OBJECTS) $(patsubst %.cu,build/cuda/%.o,$(KERNEL_SOURCES))
	g++ -shared -Wl,-Bsymbolic,--no-undefined,--as-needed,-rpath,'$$ORIGIN',-rpath,$(CUDA_HOME)/lib64 $^ -L$(CUDA_HOME)/lib64 -lcublas -lcudart_static -lpthread -ldl -lrt -o $@

# tests/e2e/emu.sh runs where this can be built, and says so where it cannot.
DEVICE_FOR_TESTS := $(if $(wildcard $(CUDA_INCLUDE)/cublas_v2.h),emu)

.PHONY: emu cuda
emu: $(EMU_PLUGIN)
cuda:
	@$(MAKE) -s cuda-compiler || { echo 'cuda: nvcc is not installed (CUDA_HOME names the toolkit'"'"'s folder)' >&2; exit 1; }
	$(MAKE) $(CUDA_PLUGIN)

# ---- a GPU at hand -----------------------------------------------------------------------------------------------------
# The kernels' own tests, compiled against the real runtime. What only an emulator can show is left out. Everything that a
# machine with a driver and cuBLAS needs is put into build/gpu, so that it can be carried to one that has no more (small
# with CUDA_ARCHITECTURES=90, from a clean build/cuda): every program finds the libraries that lie beside it.
GPU_TESTS := $(filter-out %/test_bugs.c %/test_host.c %/test_graph.c,$(EMU_TESTS))
GPU_PROGRAMS := $(GPU_TESTS:tests/cuda_emu/%.c=build/gpu/%)
GPU_UNIT := $(addprefix build/gpu/unit/,test_parity test_invariance test_weights_device)
GPU_CUDA := -L$(CUDA_HOME)/lib64 -lcublas -lcudart -ldl
GPU_LINK := -Wl,--as-needed,--strip-debug
build/gpu/%.c.o: %.c
	@mkdir -p $(@D)
	$(EMU_CC) $(EMU_CFLAGS) -UEMU_NCCL -DEMU_NCCL=0 -DEMU_VARIANT='"gpu"' -c $< -o $@
build/gpu/libgpu_kernels.so: $(patsubst %.cu,build/cuda/%.o,$(EMU_KERNELS))
	@mkdir -p $(@D)
	g++ -shared -Wl,-soname,$(@F),-rpath,'$$ORIGIN',-rpath,$(CUDA_HOME)/lib64 $(GPU_LINK) $^ $(GPU_CUDA) -o $@
# The plugin's entries for the tests that call them.
build/gpu/libgpu_backend.a: $(patsubst %.c,build/device/%.o,$(DEVICE_SOURCES))
	@mkdir -p $(@D)
	@rm -f $@
	@ar rcs $@ $^
$(GPU_PROGRAMS): build/gpu/%: build/gpu/tests/cuda_emu/%.c.o build/gpu/libgpu_backend.a build/gpu/libgpu_kernels.so $(EMU_LIBRARY)
	g++ -Wl,-rpath,'$$ORIGIN',-rpath,$(CUDA_HOME)/lib64 $(GPU_LINK) $^ -lcmocka $(LIBS) $(GPU_CUDA) -o $@
build/gpu/nibble: $(BUILD)/train/main.o $(LIBRARY)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -Wl,-rpath,'$$ORIGIN' $(GPU_LINK) $^ $(LIBS) -o $@
$(GPU_UNIT): build/gpu/unit/%: $(BUILD)/tests/unit/%.o $(TEST_SUPPORT) $(LIBRARY)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -Wl,-rpath,'$$ORIGIN/..' $(GPU_LINK) $^ -lcmocka $(LIBS) -o $@
.PRECIOUS: build/gpu/%.c.o

.PHONY: gpu-bundle test-gpu bench-gpu
gpu-bundle: all cuda
	$(MAKE) $(GPU_PROGRAMS) $(GPU_UNIT) build/gpu/nibble
	strip -g $(CUDA_PLUGIN) -o build/gpu/$(notdir $(CUDA_PLUGIN))
	ldd build/gpu/nibble build/gpu/test_norm | awk '/cjson|zstd|libz\.|pcre2|utf8proc|xxhash|cmocka|cudart/ { print $$3 }' | sort -u | grep -v '/build/gpu/' | xargs -I{} cp -L {} build/gpu
test-gpu: gpu-bundle
	tests/tools/gpu.sh test
bench-gpu: gpu-bundle
	tests/tools/gpu.sh bench

-include $(shell find build/device build/gpu build/emu build/cuda -name '*.d' 2>/dev/null)
