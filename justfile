# Recipes for people who work on tenantry. `just` lists them.

_default:
    @just --list

# Try it: everything embedded, Ctrl-C ends it
dev *args:
    cargo run -- dev {{args}}

# What CI checks
ci:
    bash .ci/run

# All tests, or those whose name contains FILTER
test *filter:
    cargo test -- {{filter}}

# Format and lint
lint:
    cargo fmt
    cargo clippy --all-targets -- -D warnings

# Benchmarks: converge, single, three, memory; all without a name
bench *names:
    cargo bench --bench bench -- {{names}}

# Build the image with podman or another builder of Containerfiles
image builder="podman":
    {{builder}} build -f manifests/container/Containerfile --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" \
        --build-arg REVISION="$(git rev-parse HEAD)" -t tenantry .

# Render each overlay of Kubernetes, check it, and check the unit of systemd
manifests:
    cargo test --locked --test it manifests::

# Check the suite of compose: its file, its blueprint, its scripts
compose-check:
    cargo test --locked --test it compose::

# Write the docs that the program itself prints, and those of the code
docs:
    cargo run --quiet -- metrics -o markdown > docs/metrics.md
    RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items

# Which lines the tests run: `cargo install cargo-llvm-cov` first
coverage:
    cargo llvm-cov --html

# Licences, sources and banned crates, and advisories where their database can be had
deny:
    cargo deny --locked check bans licenses sources
    cargo deny --locked check advisories || echo "advisories were not checked: their database could not be had, or has findings"

# The binary for production: no simulators, no failpoints
release:
    cargo build --release --locked --no-default-features

# Write the dashboards, and the runbook's address into the alerts, from dashboards/generate.py
dashboards:
    python3 dashboards/generate.py
    python3 manifests/kubernetes/generate.py

# Check the alerts, and try each of them (needs promtool and amtool)
alerts:
    promtool check rules manifests/prometheus/tenantry.rules.yaml
    promtool check config manifests/prometheus/prometheus.example.yaml
    promtool test rules manifests/prometheus/tests/*.test.yaml
    amtool check-config manifests/prometheus/alertmanager.example.yaml
