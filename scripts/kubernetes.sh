#!/bin/sh
# What deploy/kubernetes needs beside kubectl (docs/kubernetes.md):
#   kubernetes.sh secrets [--workers N] [--worker ID]... [--host NAME]...    prints the secrets, for kubectl apply -f -
#   kubernetes.sh check [ROOT]      checks the overlays against the API's schemas and themselves: make kubernetes-check
#   kubernetes.sh rehearse up|down [OVERLAY]     runs an overlay's pods (native) on this machine's engine, and removes them
# secrets keeps CA, certificates and tokens in BERTH_KUBERNETES_DIR (tmp/kubernetes), and makes only what is missing there.
# The others need kubectl or kustomize, and Python; no cluster, and no network once its packages are there. PYTHON: one that has them.
# A rehearsal is called REHEARSAL (berth-rehearsal), and uses the components' images of the tag BERTH_TAG.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
umask 077

dir=${BERTH_KUBERNETES_DIR:-$PWD/tmp/kubernetes}
usage() { sed -n '3,5s/^#   //p' scripts/kubernetes.sh; }

# The command line client, wherever it was built.
client() {
    for berth in "${BERTH_BIN_DIR:-bin}/berth" "${CARGO_TARGET_DIR:-target}/images/berth" "$(command -v berth || true)" ''; do
        if [ -x "$berth" ]; then break; fi
    done
    [ -n "$berth" ] || die "there is no berth command here" "make build"
    env -i PATH="$PATH" HOME="${HOME:-/}" "$berth" "$@"
}

# ---- secrets ----

entry() { printf '  %s: %s\n' "$1" "$(base64 <"$2" | tr -d '\n')"; }
begin() { printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: %s\ntype: Opaque\ndata:\n' "$2" "$1"; }

secrets() {
    count=0
    workers=
    hosts="--host berth-coordinator --host berth-coordinator.berth --host berth-coordinator.berth.svc --host berth-coordinator.berth.svc.cluster.local"
    while [ $# -gt 0 ]; do
        case "$1" in
            --workers | --worker | --host)
                [ $# -gt 1 ] || die "$1 wants a value" "$(usage)"
                case "$2" in '' | *[!A-Za-z0-9._-]*) die "$1 $2: letters, digits, dots and hyphens" ;; esac
                case "$1" in
                    --workers)
                        case "$2" in *[!0-9]*) die "--workers $2 is no number" ;; esac
                        count=$2
                        ;;
                    --worker) workers="$workers $2" ;;
                    --host) hosts="$hosts --host $2" ;;
                esac
                shift 2
                ;;
            *) die "unknown argument: $1" "$(usage)" ;;
        esac
    done
    number=0
    while [ "$number" -lt "$count" ]; do
        workers="$workers berth-worker-$number"
        number=$((number + 1))
    done
    mkdir -p "$dir"
    for token in admin join; do
        [ -s "$dir/$token.token" ] || printf 'berth_%s\n' "$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')" >"$dir/$token.token"
    done
    # shellcheck disable=SC2086 # words
    [ -e "$dir/tls/ca.pem" ] || client tls --dir "$dir/tls" init $hosts >&2
    for worker in $workers; do
        [ -e "$dir/tls/workers/$worker" ] || client tls --dir "$dir/tls" worker "$worker" >&2
    done

    begin berth berth-coordinator-tls
    for file in ca.pem coordinator.pem coordinator.key; do entry "$file" "$dir/tls/$file"; done
    begin berth berth-tokens
    for token in admin join; do entry "$token.token" "$dir/$token.token"; done
    begin berth-workers berth-join
    entry join.token "$dir/join.token"
    # All that there are, also from before: applying it takes none away.
    begin berth-workers berth-worker-tls
    entry ca.pem "$dir/tls/ca.pem"
    for own in "$dir"/tls/workers/*; do
        [ -e "$own/worker.key" ] || continue
        entry "${own##*/}.pem" "$own/worker.pem"
        entry "${own##*/}.key" "$own/worker.key"
    done
    say "kept in $dir: the CA's key (tls/ca.key) is needed to make more, and by nobody who serves"
}

# ---- check ----

python() {
    if [ -n "${PYTHON:-}" ]; then
        printf '%s\n' "$PYTHON"
        return
    fi
    venv=${CARGO_TARGET_DIR:-target}/kubernetes-check
    if ! cmp -s deploy/kubernetes/requirements.txt "$venv/requirements.txt"; then
        have python3 || die "there is no Python here" "apt-get install python3-venv"
        python3 -m venv "$venv" >&2 || die "no environment could be made" "apt-get install python3-venv"
        "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps -r deploy/kubernetes/requirements.txt >&2 ||
            die "the API's schemas could not be had (see above)" "PYTHON=… names a Python that has deploy/kubernetes/requirements.txt"
        cp deploy/kubernetes/requirements.txt "$venv/"
    fi
    printf '%s\n' "$venv/bin/python"
}

check() {
    root=${1:-deploy/kubernetes}
    [ -d "$root/overlays" ] || die "there are no overlays in $root"
    have kubectl || have kustomize || die "neither kubectl nor kustomize is here" "install one of them: it renders the overlays"
    interpreter=$(python)
    bin=${BERTH_BIN_DIR:-bin}
    tmp=$(mktemp -d "${TMPDIR:-/tmp}/berth-kubernetes.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    set -- --root "$root"
    if [ -x "$bin/coordinator" ] && [ -x "$bin/worker" ] && [ -x "$bin/berth" ]; then
        # Of names that check.py takes for some pod's.
        dir=$tmp/secrets
        secrets --workers 2 >"$tmp/secrets.yaml" 2>"$tmp/log" ||
            { cat "$tmp/log" >&2; die "the secrets could not be made"; }
        set -- "$@" --bin "$bin" --secrets "$tmp/secrets.yaml"
    else
        say "note: there is no $bin/coordinator; the settings are not tried (make build)"
    fi
    "$interpreter" deploy/kubernetes/check.py "$@"
}

# ---- rehearse ----

rehearse() { # up|down [OVERLAY]
    rehearsal=${REHEARSAL:-berth-rehearsal}
    set -- "${1:-}" "${2:-native}" "$(python)"
    case "$1" in
        up)
            docker_usable || die "$docker_why" "a rehearsal is one on an engine"
            [ -d "deploy/kubernetes/overlays/$2" ] || die "there is no overlay $2"
            mkdir -p "$dir"
            secrets --workers 2 >"$dir/secrets.yaml"
            if have kubectl; then kubectl kustomize "deploy/kubernetes/overlays/$2"; else kustomize build "deploy/kubernetes/overlays/$2"; fi >"$dir/overlay.yaml"
            "$3" deploy/kubernetes/rehearse.py up --name "$rehearsal" --dir "$dir/pods" --overlay "$dir/overlay.yaml" --secrets "$dir/secrets.yaml" \
                --tag "${BERTH_TAG:-latest}" --publish
            address=$(docker port "$rehearsal-berth-coordinator-0-coordinator" 50051 | head -n 1)
            # shellcheck disable=SC2016 # for the reader's shell
            printf 'export BERTH_ADDRESS=https://%s BERTH_TLS_CA=%s BERTH_TOKEN=$(cat %s)\n' "$address" "$dir/tls/ca.pem" "$dir/admin.token"
            ;;
        down)
            "$3" deploy/kubernetes/rehearse.py down --name "$rehearsal" --dir "$dir/pods"
            rm -f "$dir/secrets.yaml" "$dir/overlay.yaml"
            ;;
        *) die "rehearse up, or rehearse down?" "$(usage)" ;;
    esac
}

command=${1:-}
[ $# -eq 0 ] || shift
case "$command" in
    secrets) secrets "$@" ;;
    check) check "$@" ;;
    rehearse) rehearse "$@" ;;
    *) die "unknown command: ${command:-none}" "$(usage)" ;;
esac
