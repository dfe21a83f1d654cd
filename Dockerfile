# The images of sluice, for those who have a container engine:
#
#   version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
#   docker build --build-arg VERSION=$version --target operator  -t sluice-operator:$version  .
#   docker build --build-arg VERSION=$version --target dataplane -t sluice-dataplane:$version .
#
# Without an engine `make images` makes the same: a static program, the certificate authorities, nothing else. This file was
# written where no engine could run it: the commands of the build stage are those of images/build.sh, which was run.

FROM docker.io/library/rust:1.89-bookworm AS build
WORKDIR /sluice
COPY . .
# A --target of its own keeps build scripts and procedural macros, which cannot be static, free of the flags.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/sluice/target \
    triple=$(rustc -vV | sed -n 's/^host: //p') \
 && RUSTFLAGS="-Ctarget-feature=+crt-static -Cstrip=debuginfo" \
    cargo build --release --locked --target "$triple" -p sluice-operator --bin sluice-operator -p sluice-dataplane --bin sluice-dataplane \
 && install -D -t /out "target/$triple/release/sluice-operator" "target/$triple/release/sluice-dataplane"

FROM scratch AS operator
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/sluice-operator /sluice-operator
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
ARG VERSION
LABEL org.opencontainers.image.title="sluice-operator" org.opencontainers.image.version="$VERSION" org.opencontainers.image.licenses="Apache-2.0"
ENTRYPOINT ["/sluice-operator"]

FROM scratch AS dataplane
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/sluice-dataplane /sluice-dataplane
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
ARG VERSION
LABEL org.opencontainers.image.title="sluice-dataplane" org.opencontainers.image.version="$VERSION" org.opencontainers.image.licenses="Apache-2.0"
EXPOSE 8080 9090
ENTRYPOINT ["/sluice-dataplane"]
