# The plugins through which ranks talk. Each is built where its library is found; the program starts and works without them.

PLUGIN_SOURCES := train/comm_mpi.c kernels/cuda/comm_nccl.c
# Both sides are made from these: a plugin of another build is refused when it is loaded.
COMM_ID := $(shell cat core/comm_plugin.h $(wildcard $(PLUGIN_SOURCES)) | cksum | cut -d' ' -f1)
COMM_DEFINES := -DNIBBLE_BUILD_ID='"$(COMM_ID)"'
PLUGIN_FOLDER := $(patsubst %/,%,$(dir $(BINARY)))
$(BUILD)/train/comm_open.o: train/comm_open.c core/comm_plugin.h $(wildcard $(PLUGIN_SOURCES)) $(STAMP) | $(LIBRARIES)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) $(COMM_DEFINES) -c $< -o $@

MPICC ?= mpicc
ifneq ($(shell command -v $(firstword $(MPICC)) 2>/dev/null),)
MPI_PLUGIN := $(PLUGIN_FOLDER)/libnibble_mpi.so
# The wrapper's own words, so that every compiler and sanitizer builds it.
$(MPI_PLUGIN): $(wildcard $(PLUGIN_SOURCES)) core/comm_plugin.h $(STAMP)
	@mkdir -p $(@D)
	$(CC) $(filter-out -MMD -MP,$(CFLAGS_ALL)) $(COMM_DEFINES) -fPIC -shared train/comm_mpi.c $(shell $(MPICC) --showme:compile 2>/dev/null || $(MPICC) -compile_info | cut -d' ' -f2-) \
		$(OPT) $(shell $(MPICC) --showme:link 2>/dev/null || $(MPICC) -link_info | cut -d' ' -f2-) -o $@
PLUGINS += $(MPI_PLUGIN)
else
$(info nibble: no $(MPICC): CPU ranks are left out (package libopenmpi-dev))
endif

.PHONY: plugins
plugins: $(PLUGINS)
all: plugins
