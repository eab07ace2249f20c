#!/bin/sh
# Makes what client/python has of the protos (messages and stubs), and its sync client of its async one. With arguments
# they go to client/python/generate.py: --check changes nothing, and says what is stale.
# The version of grpcio-tools decides what the files look like, and which grpcio and protobuf they run with.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh

venv=target/python-proto
tools=grpcio-tools==1.76.0
if [ ! -f "$venv/$tools" ]; then
    rm -rf "$venv"
    python=python3
    if [ -x /usr/bin/python3 ]; then python=/usr/bin/python3; fi
    "$python" -m venv "$venv" >&2 || die "no Python with venv" "as root on Debian: apt-get install python3-venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "$tools" >&2 || die "$tools could not be installed"
    touch "$venv/$tools"
fi
exec "$venv/bin/python" client/python/generate.py "$@"
