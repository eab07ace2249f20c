# The components' images for those who build without cargo, where a base image can be pulled:
#   docker build --target coordinator -t berth/coordinator .
#   docker build --target worker -t berth/worker .
#   docker build --target client --output bin .       bin/berth, the command line (BuildKit; else docker create and docker cp)
# VERSION and REVISION (--build-arg) are their labels: the context has no .git to ask.
# The same files as `make docker-build` puts together, by the same script; what is said of each below is what
# `scripts/images.sh --settings` says, and a test compares the two.

ARG RUST=rust:1-bookworm

FROM ${RUST} AS build
ARG PROFILE=image
WORKDIR /src
COPY . .
RUN umask 022 && PROFILE=$PROFILE sh scripts/images.sh --root /out coordinator worker && \
    mkdir /out/state && mv /out/coordinator/var/lib/berth /out/state/ && \
    mkdir /out/client && cp "$(ls target/images/berth bin/berth 2>/dev/null | head -n 1)" /out/client/ && strip /out/client/berth

FROM scratch AS client
COPY --from=build /out/client /

FROM scratch AS coordinator
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG PROFILE=image
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION berth.profile=$PROFILE
COPY --from=build /out/coordinator /
# Its own user's: a directory keeps its owner only if this line makes it.
COPY --from=build --chown=10001:10001 /out/state /var/lib
USER 10001:10001
EXPOSE 50051 8080
ENTRYPOINT ["/usr/bin/coordinator"]
ENV PATH=/usr/bin:/bin:/usr/sbin:/sbin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt BERTH_STATE_DIR=/var/lib/berth BERTH_LOG_FORMAT=json
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/bin/coordinator","health"]
WORKDIR /
LABEL org.opencontainers.image.title="Berth coordinator"
LABEL org.opencontainers.image.description="Schedules sessions onto workers, and routes every call to them"
LABEL org.opencontainers.image.licenses="Apache-2.0"

FROM scratch AS worker
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG PROFILE=image
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION berth.profile=$PROFILE
COPY --from=build /out/worker /
USER 0:0
ENTRYPOINT ["/usr/bin/worker"]
ENV PATH=/usr/bin:/bin:/usr/sbin:/sbin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt BERTH_STATE_DIR=/var/lib/berth/worker BERTH_SANDBOX=docker BERTH_LOG_FORMAT=json
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["/usr/bin/worker","health"]
WORKDIR /
LABEL org.opencontainers.image.title="Berth worker"
LABEL org.opencontainers.image.description="Owns the sandboxes of one machine and serves their sessions"
LABEL org.opencontainers.image.licenses="Apache-2.0"
