# ftfuse: `make demo` to see it, `make test` to try it, `make bench` to measure it.

GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
GOFUMPT     ?= $(GO) run mvdan.cc/gofumpt@v0.12.0
STATICCHECK ?= $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 5s
BENCHFLAGS  ?=

.PHONY: all build test demo bench bench-quick soak race fuzz-short lint check setup clean

all: build

# One static binary; nothing else needs to be installed beside it.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/ftfuse .

# Installs what the tests need and is missing (as root, with apt-get), or says so.
setup:
	@.ci/setup test

# Every test, those of the built binary on real mounts included; a package at a time, since many kill, fill and measure.
test: setup
	$(GO) test -p 1 -timeout 30m ./...

# A receiver and a mount in a temporary folder, real programs, a kill -9, and the count.
demo:
	@.ci/setup demo
	@$(MAKE) --no-print-directory build
	@bin/ftfuse demo

# What this machine reaches in either attribution and through a relay, beside a plain file, an
# empty FUSE file system and tail | nc.
bench:
	@.ci/setup bench
	@$(MAKE) --no-print-directory build
	bin/ftfuse bench --tail-nc --relay --json bin/bench.json $(BENCHFLAGS)

bench-quick:
	@$(MAKE) --no-print-directory bench BENCHFLAGS='--quick --sizes 128 --writers 4 $(BENCHFLAGS)'

# The tests that take their time: many kills, larger amounts.
soak: setup
	FTFUSE_SOAK=1 $(GO) test -count=1 -timeout 240m -v ./...

# Every package but e2e, whose binary is built without it.
race: setup
	@.ci/race

fuzz-short:
	@.ci/fuzz $(FUZZTIME)

# Form, known mistakes, and the module files.
lint:
	@out="$$($(GOFUMPT) -l $$(git ls-files '*.go'))" && if [ -n "$$out" ]; then echo "gofumpt would change:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(STATICCHECK) ./...
	$(GO) mod tidy -diff

# Everything that .ci/run asks before the tests.
check: lint build

clean:
	rm -rf bin
