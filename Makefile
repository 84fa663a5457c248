# ftfuse: `make demo` to see it, `make test` to try it, `make bench` to measure it.

GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
GOFUMPT     ?= $(GO) run mvdan.cc/gofumpt@v0.12.0
STATICCHECK ?= $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 5s
BENCHFLAGS  ?=

# Where `make install` puts things, below DESTDIR. mount(8) looks for its helpers in /sbin alone.
PREFIX      ?= /usr/local
BINDIR      ?= $(PREFIX)/bin
DOCDIR      ?= $(PREFIX)/share/doc/ftfuse
SYSCONFDIR  ?= /etc
SBINDIR     ?= /sbin
UNITDIR     ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
BUILT       ?= bin/ftfuse
# Type=notify-reload needs systemd 253; an older one, if it is installed here, gets its like.
NOTIFYRELOAD ?= $(shell v=$$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p'); [ "$${v:-253}" -ge 253 ] && echo yes || echo no)

.PHONY: all build test demo bench bench-quick soak race fuzz-short lint check setup clean install uninstall

all: build

# One static binary; nothing else needs to be installed beside it.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/ftfuse .

# Installs what the tests need and is missing (as root, with apt-get), or says so.
setup:
	@.ci/setup test

# Every test, those of the built binary on real mounts included; a package at a time, since many kill, fill and measure.
test: setup
	$(GO) test -p 1 -timeout 30m $$($(GO) list ./... | grep -v '/e2e$$')
	$(GO) test -count=1 -timeout 30m ./e2e # never from go's cache, which knows nothing of the binary

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

# The tests that take their time: many kills, larger amounts, and what they time, for which a
# package, and a test in it, has the machine to itself.
soak: setup
	FTFUSE_SOAK=1 $(GO) test -p 1 -parallel 1 -count=1 -timeout 240m -v ./...

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

# The binary, the helpers of mount(8) and umount(8), the units of the three roles, documents and examples. It starts nothing.
install: build
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(SBINDIR) $(DESTDIR)$(UNITDIR) $(DESTDIR)$(SYSUSERSDIR) $(DESTDIR)$(DOCDIR)/examples $(DESTDIR)$(SYSCONFDIR)/ftfuse
	install -m 0755 $(BUILT) $(DESTDIR)$(BINDIR)/.ftfuse.new
	mv -f $(DESTDIR)$(BINDIR)/.ftfuse.new $(DESTDIR)$(BINDIR)/ftfuse
	for name in mount.ftfuse mount.fuse.ftfuse umount.fuse.ftfuse; do ln -sfn $(BINDIR)/ftfuse $(DESTDIR)$(SBINDIR)/$$name || exit 1; done
	for role in mount relay receive; do \
		sed -e 's|@bindir@|$(BINDIR)|; s|@docdir@|$(DOCDIR)|; s|@sysconfdir@|$(SYSCONFDIR)|' \
			-e '$(if $(filter yes,$(NOTIFYRELOAD)),s|@type@|Type=notify-reload|; /^@sighup@$$/d,s|@type@|Type=notify|; s|^@sighup@$$|ExecReload=/bin/kill -HUP $$MAINPID|)' \
			dist/ftfuse-$$role.service.in >$(DESTDIR)$(UNITDIR)/ftfuse-$$role.service || exit 1; \
		install -m 0644 testdata/$$role.toml $(DESTDIR)$(DOCDIR)/examples || exit 1; \
	done
	install -m 0644 dist/ftfuse.sysusers $(DESTDIR)$(SYSUSERSDIR)/ftfuse.conf
	install -m 0644 README.md CHANGELOG.md docs/*.md $(DESTDIR)$(DOCDIR)
	@echo 'Next: write $(SYSCONFDIR)/ftfuse/ftfuse.toml (examples: $(DOCDIR)/examples), `ftfuse check`, then'
	@echo '`systemd-sysusers && systemctl daemon-reload && systemctl enable --now ftfuse-ROLE`, or a line in /etc/fstab.'

# Everything of install but the configuration.
uninstall:
	for name in mount.ftfuse mount.fuse.ftfuse umount.fuse.ftfuse; do rm -f $(DESTDIR)$(SBINDIR)/$$name; done
	for role in mount relay receive; do rm -f $(DESTDIR)$(UNITDIR)/ftfuse-$$role.service; done
	rm -f $(DESTDIR)$(BINDIR)/ftfuse $(DESTDIR)$(SYSUSERSDIR)/ftfuse.conf
	rm -rf $(DESTDIR)$(DOCDIR)

clean:
	rm -rf bin
