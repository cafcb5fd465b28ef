# A thin front to tools/ and CMake; every target can be run by hand as its lines say.

SHELL := /bin/bash
JOBS ?= $(shell nproc)

.DEFAULT_GOAL := help
.PHONY: help bootstrap build test e2e demo bench gpu format lint asan tsan fuzz release install clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | \
	  expand -t 20

bootstrap: ## install what building and testing needs (a second run only looks)
	@tools/bootstrap

build: bootstrap ## build everything for development, in build/dev
	cmake --preset dev
	cmake --build --preset dev --parallel $(JOBS)

test: bootstrap ## everything that needs no GPU: all tests, sanitizers, fuzzers for a few seconds
	@JOBS=$(JOBS) tools/test

e2e: release ## Rubato on a real one-node Kubernetes cluster, here and as root (tests/e2e/README.md)
	@tools/bootstrap --e2e
	tests/e2e/run

release: bootstrap ## build what is installed and measured, in build/release
	cmake --preset release
	cmake --build --preset release --parallel $(JOBS)

install: release ## install under PREFIX (default /usr/local); DESTDIR for packages
	DESTDIR=$(DESTDIR) cmake --install build/release --prefix $(or $(PREFIX),/usr/local) --strip

demo: release ## the promise, with and without Rubato, on a GPU or on the software GPU
	bench/demo/run --build-dir build/release

bench: release ## nanoseconds per hooked launch, against the bare stand-in driver
	bench/micro/run --build-dir build/release

gpu: release ## the loads on a real GPU, and what only a GPU proves
	tests/gpu/run --build-dir build/release
	bench/gpu/run --build-dir build/release

format: ## format all C++ in place
	tools/format

lint: bootstrap ## clang-tidy over all C++ of the project
	cmake --preset dev
	cmake --build --preset dev --parallel $(JOBS)
	@JOBS=$(JOBS) tools/lint

asan: bootstrap ## unit tests under the address and undefined-behaviour sanitizers
	@JOBS=$(JOBS) tools/test asan

tsan: bootstrap ## unit tests under the thread sanitizer
	@JOBS=$(JOBS) tools/test tsan

fuzz: bootstrap ## each fuzzer for a while (RUBATO_FUZZ_SECONDS=600 make fuzz)
	@JOBS=$(JOBS) tools/test fuzz

clean: ## remove everything built; what tools/bootstrap fetched stays
	@find build -mindepth 1 -maxdepth 1 ! -name vendor -exec rm -rf {} + 2>/dev/null || true
