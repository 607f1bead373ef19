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
OPT    ?= -O3
SAN    ?=
WERROR ?=
V      ?=
Q      := $(if $(V),,@)
BUILD  ?= build

# One object tree per configuration; the plain one puts its programs straight into build/.
O := $(BUILD)/obj/$(notdir $(CC))$(if $(SAN),-$(subst $(,),+,$(SAN)))$(if $(COV),-cov)
BIN := $(if $(SAN)$(COV)$(filter-out gcc,$(notdir $(CC))),$(O)/bin,$(BUILD))

PKGS := libmicrohttpd jansson liburing libpcre2-8 libutf8proc yaml-0.1 libxxhash libcurl libcrypto libprotobuf-c
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null)

WARN := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wstrict-prototypes -Wmissing-prototypes \
  -Wvla -Wundef -Wformat=2 -Wwrite-strings -Wpointer-arith -Wswitch-enum $(if $(WERROR),-Werror)
CPPFLAGS := -I. -I$(O)/gen -D_GNU_SOURCE $(PKG_CFLAGS)
CFLAGS := -std=c11 -g $(OPT) -fno-math-errno -ffp-contract=off -fno-omit-frame-pointer -pthread $(WARN) \
  $(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all) $(if $(COV),-fprofile-instr-generate -fcoverage-mapping)
LDLIBS := $(PKG_LIBS) -lm -pthread

# ISA flags by file suffix: foo_avx2.c, foo_avx512.c (F BW DQ VL VNNI), foo_bf16.c (the same and BF16)
isa_avx2   := -mavx2 -mfma -mf16c
isa_avx512 := $(isa_avx2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
isa_bf16   := $(isa_avx512) -mavx512bf16
isa_of = $(isa_$(lastword $(subst _, ,$(basename $(notdir $1)))))

LIB_SRC := $(sort $(wildcard server/base/*.c server/text/*.c server/model/*.c server/engine/*.c server/cli/*.c \
  kernels/*.c kernels/cpu/*.c quant/*.c quant/*/*.c kvcache/*.c kvcache/*/*.c api/*.c) \
  $(filter-out server/main.c,$(wildcard server/*.c)))
TEST_SRC := $(sort $(wildcard tests/unit/*.c tests/ops/*.c))
FUZZ_SRC := $(sort $(wildcard tests/fuzz/*.c))
LIB := $(O)/libwring.a
TESTS := $(patsubst tests/%.c,$(O)/test/%,$(TEST_SRC))

.PHONY: all help FORCE clean
all: $(BIN)/wring ## build the program (build/wring)

$(O)/.flags: FORCE
	@mkdir -p $(@D); echo '$(CC) $(CPPFLAGS) $(CFLAGS) $(isa_bf16) $(LDLIBS)' | cmp -s - $@ || echo '$(CC) $(CPPFLAGS) $(CFLAGS) $(isa_bf16) $(LDLIBS)' > $@

$(O)/%.o: %.c $(O)/.flags
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  CC   $<"
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(call isa_of,$<) -MMD -MP -c -o $@ $<

# The chat page is embedded with .incbin, which -MMD does not see.
$(O)/api/chat_page.o: api/chat.html

$(LIB): $(LIB_SRC:%.c=$(O)/%.o)
	$(Q)rm -f $@; ar rcs $@ $^

$(BIN)/wring: $(O)/server/main.o $(LIB)
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  LD   $@"
	$(Q)$(CC) $(CFLAGS) -o $@ $(O)/server/main.o $(LIB) $(LDLIBS)

$(O)/test/%: $(O)/tests/%.o $(LIB)
	@mkdir -p $(@D); [ -z "$(Q)" ] || echo "  LD   $@"
	$(Q)$(CC) $(CFLAGS) -o $@ $< $(LIB) $(LDLIBS) -lcmocka

tests: $(TESTS)
.PHONY: tests

help: ## this list
	@awk -F':.*## ' '/^[a-z_.-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

clean: ## remove everything that was built
	rm -rf $(BUILD)

.SECONDARY:
-include $(shell find $(O) -name '*.d' 2>/dev/null)
