# bitdeltad: `make help` prints the targets. Everything is built under build/ (or O=DIR).
#   MODE=release (default) | asan (address + undefined) | tsan (threads): each in a folder of its own
#   V=1 shows the commands; CFLAGS reach C, CXXFLAGS the one C++ file, NVCCFLAGS the CUDA backend (only where nvcc is found)
#   CUDA_ARCH="80 90a 80p" builds that for these (p: as PTX); default the card's here, else 90a; all: every card from 8.0 on
MAKEFLAGS += -r
MODE ?= release
JOBS ?= $(shell nproc)
Q := $(if $(V),,@)
O ?= $(if $(filter release,$(MODE)),build,build/$(MODE))
PREFIX ?= /usr/local
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

WARN := -Wall -Wextra -Wshadow -Wconversion -Werror
SAN_asan := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SAN_tsan := -fsanitize=thread
COMMON := $(if $(filter release,$(MODE)),-O2,-O1) -g $(SAN_$(MODE)) -I. -MMD -MP -fPIC -fstack-protector-strong
CFLAGS += -std=c17 -D_GNU_SOURCE $(WARN) $(COMMON)
CXXFLAGS += -std=c++17 $(WARN) $(COMMON)
LDFLAGS += $(SAN_$(MODE))
LDLIBS := -ljansson -lcrypto -lsentencepiece -lpthread -ldl -lm
NVCC := $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
CUDA_ARCH := $(or $(CUDA_ARCH),$(and $(NVCC),$(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed 's/\.//;s/^90$$/90a/;q')),90a)
GENCODE := $(foreach a,$(CUDA_ARCH:all=80 90a 100 120 80p),-gencode=arch=compute_$(a:p=),code=$(if $(a:%p=),sm,compute)_$(a:p=))
NVCCFLAGS += -O3 -std=c++17 -I. $(GENCODE) -Xcompiler -fPIC -Xptxas -warn-spills -lineinfo

src = $(wildcard $(addsuffix /*.c,$(1)))
LIB := $(call src,config kernels kernels/cpu tokenizer engine) tokenizer/sentencepiece.cc
SERVER := $(filter-out server/main.c,$(call src,server))
TOOL := $(filter-out compress/main.c,$(call src,compress client))
TESTS := $(call src,tests tests/unit tests/kernels tests/e2e tests/golden tests/fuzz)
GPU_TESTS := $(patsubst tests/%.cu,$(O)/%,$(wildcard tests/cuda/test_*.cu))
GPU_BENCHES := $(patsubst tests/%.cu,$(O)/%,$(wildcard tests/cuda/bench_*.cu))
obj = $(addprefix $(O)/,$(addsuffix .o,$(1)))

PROGRAMS := $(O)/bitdeltad $(O)/bitdelta
# The CUDA backends, of serving and of fitting, are libraries loaded at run time, built where nvcc is, the second where cuBLAS is, too.
CUDA_LIB := $(O)/libbitdelta_cuda.so $(if $(wildcard $(dir $(NVCC))../include/cublas_v2.h /usr/include/cublas_v2.h),$(O)/libbitdelta_train.so)
CUDA_OBJ := $(call obj,$(wildcard kernels/cuda/*.cu) kernels/kernels.c config/err.c config/log.c)

.PHONY: help all deps demo test test-page test-quickstart accept bench bench-http test-gpu bench-gpu fuzz fuzz-objects format format-check layers limits docs man install clean
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 17
all: deps ## install what is missing (apt), build the programs
	@$(MAKE) --no-print-directory -j$(JOBS) programs
deps: ## install the build dependencies (Debian 12, Ubuntu 24.04)
	@sh deploy/install-deps.sh
programs: $(PROGRAMS) $(if $(and $(NVCC),$(filter release,$(MODE))),$(CUDA_LIB)) ## build, with everything installed already
demo: all ## serve the shipped base and tenants, print one completion of each (DEMO_ONCE=1: then exit)
	@sh demo/run.sh $(O)
test: all ## build and run every test
	@$(MAKE) --no-print-directory -j$(JOBS) $(O)/test
	@$(O)/test -j$(JOBS)
test-page: programs ## drive the playground in headless Chromium (installed with apt where it is missing)
	@sh tests/page/run.sh $(O)
test-quickstart: programs ## do what docs/quickstart.md says and compare
	@bash tests/quickstart.sh $(O)
accept: programs ## other people's clients against the daemon, from PyPI, and the playground in a browser (PARTS="clients schema harness load": these alone)
	@sh tests/accept/run.sh $(O) $(PARTS)$(if $(PARTS),, && sh tests/page/run.sh $(O))
bench: all ## measure this machine's ceilings and what the CPU backend reaches
	@$(MAKE) --no-print-directory -j$(JOBS) $(O)/bench
	@$(O)/bench
bench-http: deps ## what the HTTP side costs, with an engine that computes nothing
	@$(MAKE) --no-print-directory -j$(JOBS) $(O)/bench-http
	@$(O)/bench-http
test-gpu: $(GPU_TESTS) $(O)/test-gpu $(O)/gpu-fault.so programs ## run the CUDA backend's tests (without a card: says so)
	@set -e; for t in $(GPU_TESTS) $(O)/test-gpu; do $$t; done; python3 tests/gpu/fault.py $(O); sh tests/gpu/sanitize.sh $(O)/test-gpu $(O)/cuda/test_linear $(O)/cuda/test_attention
bench-gpu: $(GPU_BENCHES) $(O)/bench-engine ## measure this card's ceilings, the CUDA kernels, contenders, the engine on a 7B shape
	@set -e; for b in $(GPU_BENCHES); do $$b; done; python3 tests/cuda/bench_contenders.py $(O)/cuda/bench_linear; $(O)/bench-engine $(or $(BENCH_DIR),/tmp)
fuzz: deps ## fuzz every parser of outside bytes with libFuzzer, FUZZ_SECONDS each (default 60)
	@sh tests/fuzz/run.sh $(or $(FUZZ_SECONDS),60)
fuzz-objects: $(call obj,$(filter-out kernels/cpu/%,$(LIB)) $(SERVER) $(TOOL) $(call src,tests/fuzz))
format: ## format every source file
	@git ls-files '*.c' '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format -i
format-check: ## fail if a source file is not formatted
	@git ls-files '*.c' '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format --dry-run -Werror
layers: ## fail on an include that the house rules forbid
	@sh tests/layers.sh
limits: ## fail on a file or function over the size limits
	@sh tests/limits.sh
docs: $(O)/bitdeltad ## regenerate the documents made from tables
	@$(O)/bitdeltad --print-options-md > docs/options.md
	@$(O)/bitdeltad --print-options-example > deploy/bitdeltad.conf.example
	@python3 docs/tenants.py

$(O)/bitdeltad: $(call obj,$(LIB) $(SERVER) server/main.c)
	@$(if $(V),:,echo '  link $@')
	$(Q)$(CXX) $(LDFLAGS) -o $@ $^ -lmicrohttpd -luv $(LDLIBS)
$(O)/bitdelta: $(call obj,$(LIB) $(TOOL) compress/main.c)
	@$(if $(V),:,echo '  link $@')
	$(Q)$(CXX) $(LDFLAGS) -o $@ $^ -lzip -lcurl -ledit $(LDLIBS)
$(O)/test: $(call obj,$(LIB) $(SERVER) $(TOOL) $(TESTS)) $(PROGRAMS)
	@$(if $(V),:,echo '  link $@')
	$(Q)$(CXX) $(LDFLAGS) -o $@ $(filter %.o,$^) -lmicrohttpd -luv -lzip -lcurl -ledit $(LDLIBS)
$(O)/bench: $(call obj,$(LIB) $(call src,tests/bench))
	@$(if $(V),:,echo '  link $@')
	$(Q)$(CXX) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(O)/bench-http: $(call obj,$(call src,config tokenizer) tokenizer/sentencepiece.cc $(SERVER) $(call src,tests/bench/http))
	@$(if $(V),:,echo '  link $@')
	$(Q)$(CXX) $(LDFLAGS) -o $@ $^ -lmicrohttpd -luv $(LDLIBS)
$(O)/cuda/test_sample: $(call obj,$(addprefix kernels/cpu/,sample.c isa_c.c isa_avx2.c isa_avx512.c))
$(O)/test-gpu: $(call obj,$(LIB) compress/device.c $(call src,tests tests/gpu) $(addprefix tests/kernels/,model.c train_checks.c train_checks_learn.c) tests/golden/golden.c tests/unit/run_tool.c) $(CUDA_LIB) $(O)/bitdelta
	@$(if $(V),:,echo '  link $@')
	$(Q)$(CXX) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LDLIBS)
$(O)/bench-engine: $(call obj,$(LIB) $(call src,tests/bench/gpu) compress/tenant_write.c) $(CUDA_LIB)
	@$(if $(V),:,echo '  link $@')
	$(Q)$(CXX) $(LDFLAGS) -o $@ $(filter %.o,$^) $(LDLIBS)
$(O)/libbitdelta_cuda.so: $(CUDA_OBJ) kernels/cuda/exports.map
$(O)/libbitdelta_train.so: $(call obj,$(wildcard kernels/cuda_train/*.cu) kernels/cpu/pool.c config/err.c) kernels/cuda_train/exports.map
$(O)/libbitdelta_%.so:
	@$(if $(V),:,echo '  link $@')
	$(Q)$(NVCC) -shared $(GENCODE) -cudart static -o $@ $(filter %.o,$^) -Xlinker -z,defs,--as-needed,--version-script=$(filter %.map,$^) -lcublas
$(O)/gpu-fault.so: $(O)/tests/gpu/fault.cu.o
	$(Q)$(NVCC) -shared $(GENCODE) -cudart static -o $@ $^
$(O)/cuda/%: $(O)/tests/cuda/%.cu.o $(CUDA_OBJ)
	@mkdir -p $(@D)$(if $(V),, && echo '  link $@')
	$(Q)$(NVCC) $(NVCCFLAGS) -cudart static -o $@ $^ -lcublas

# One file per instruction set; which one runs is chosen at run time.
$(O)/kernels/cpu/%_avx2.c.o: CFLAGS += -O3 -mavx2 -mfma -mf16c
AVX512 := -O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
$(O)/kernels/cpu/%_avx512.c.o: CFLAGS += $(AVX512)
$(O)/kernels/cpu/%_amx.c.o: CFLAGS += $(AVX512) -mamx-tile -mamx-int8
$(O)/kernels/cpu/%.c.o: CFLAGS += -O3
$(O)/config/options.c.o $(O)/compress/main.c.o: CFLAGS += -DBITDELTA_VERSION='"$(VERSION)"'
$(O)/server/playground.c.o: $(wildcard demo/playground/*)
$(O)/server/openapi.c.o: server/openapi.json
$(O)/%.c.o: %.c Makefile
	@mkdir -p $(@D)$(if $(V),, && echo '  cc   $<')
	$(Q)$(CC) $(CFLAGS) -c -o $@ $<
$(O)/%.cc.o: %.cc Makefile
	@mkdir -p $(@D)$(if $(V),, && echo '  cxx  $<')
	$(Q)$(CXX) $(CXXFLAGS) -c -o $@ $<
$(O)/%.cu.o: %.cu Makefile
	@mkdir -p $(@D)$(if $(V),, && echo '  nvcc $<')
	$(Q)$(NVCC) $(NVCCFLAGS) -MMD -MP -c -o $@ $<
-include $(shell find $(O) -name '*.d' -type f 2>/dev/null)

man: programs ## manual pages and shell completions, under $(O)/share
	@sh deploy/share.sh $(O)
install: man ## install to $(DESTDIR)$(PREFIX)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 755 $(O)/bitdeltad $(O)/bitdelta $(DESTDIR)$(PREFIX)/bin
	$(if $(NVCC),install -D -m 755 -t $(DESTDIR)$(PREFIX)/lib/bitdeltad $(CUDA_LIB))
	sed 's,@PREFIX@,$(PREFIX),g' deploy/bitdeltad.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/bitdeltad.service
	install -d $(DESTDIR)$(PREFIX)/share/doc/bitdeltad
	install -m 644 README.md docs/*.md docs/*.png docs/*.svg deploy/bitdeltad.conf.example $(DESTDIR)$(PREFIX)/share/doc/bitdeltad
	cp -R $(O)/share/. $(DESTDIR)$(PREFIX)/share
clean: ## remove build/
	rm -rf build
