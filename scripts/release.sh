#!/bin/sh
# Makes what is released, in dist/ (OUT=DIR: there): make release
#   release.sh             an archive of the programs, a bill of materials (SBOM), and SHA256SUMS over both
#   release.sh check TAG   whether this may be released as vX.Y.Z: version, change log, contract
#   release.sh record      takes the contract as it is over as the released one (proto/released/v1.txt)
# PROFILE=release (default); dev: of what is in ./bin, for tests. IMAGES=1: the images of both components too, as archives.
# The same programs make the same archive, byte for byte.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
umask 022

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
target=${CARGO_TARGET_DIR:-target}

# The change log's section of this version, without its heading.
changes() { awk -v of="## [$1]" 'index($0, "## [") == 1 { on = index($0, of) == 1; next } on' CHANGELOG.md; }

check() { # TAG
    [ "$1" = "v$version" ] || die "the tag is $1, and Cargo.toml says $version" "git tag v$version; or change the version"
    [ -n "$(changes "$version" | tr -d '[:space:]')" ] || die "CHANGELOG.md has no section [$version]" "give what is under [Unreleased] this version, and a date"
    grep -q "^# The contract of $version:" proto/released/v1.txt ||
        die "the contract that was recorded is not that of $version" "after make test: sh scripts/release.sh record, and commit it"
    say "v$version may be released"
}

record() {
    current=$target/tmp/contract.txt
    [ -s "$current" ] || die "there is no $current" "cargo test --locked -p berth-proto --test contract writes it"
    {
        # shellcheck disable=SC2016 # no command, its name
        printf '# The contract of %s: what proto/tests/contract.rs holds later ones to. Written by `sh scripts/release.sh record`.\n' "$version"
        cat "$current"
    } >proto/released/v1.txt.new
    mv proto/released/v1.txt.new proto/released/v1.txt
    say "proto/released/v1.txt is the contract of $version"
}

case "${1:-}" in
    '') ;;
    check) [ $# -eq 2 ] || die "check wants a tag"; check "$2"; exit 0 ;;
    record) record; exit 0 ;;
    *) die "unknown command: $1" "$(sed -n '3,5s/^#   //p' scripts/release.sh)" ;;
esac

have python3 || die "there is no Python here" "apt-get install python3"
host=$(rustc -vV | sed -n 's/^host: //p')
case "$host" in *-linux-gnu) ;; *) die "releases are made on Linux with the GNU C library, and this is $host" ;; esac
name=berth-$version-${host%%-*}-linux
dist=${OUT:-dist}
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}

profile=${PROFILE:-release}
effort=9
if [ "$profile" = dev ]; then
    effort=1
    bin=${BERTH_BIN_DIR:-bin}
    for program in berth coordinator worker berth-agent; do
        [ -x "$bin/$program" ] || die "there is no $bin/$program" "make build"
    done
else
    bin=$target/dist
    PROFILE=$profile OUT=$bin sh scripts/build.sh
fi

tmp=$(mktemp -d "${TMPDIR:-/tmp}/berth-release.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

root=$tmp/$name
mkdir -p "$root/bin" "$root/completions" "$root/docs" "$tmp/out"
for program in berth coordinator worker berth-agent; do
    cp "$bin/$program" "$root/bin/"
    strip --strip-debug "$root/bin/$program" 2>/dev/null || say "note: $program was not stripped"
done
for shell in bash zsh fish; do
    env -i PATH="$PATH" HOME=/ "$bin/berth" completions "$shell" >"$root/completions/berth.$shell"
done
cp LICENSE README.md CHANGELOG.md "$root/"
cp -r docs/*.md docs/images "$root/docs/"
cp -r deploy "$root/"
python3 scripts/sbom.py --version "$version" --target "$host" >"$tmp/out/$name.cdx.json"
cp "$tmp/out/$name.cdx.json" "$root/sbom.cdx.json"
find "$root" -name __pycache__ -prune -exec rm -rf {} +
find "$root" -type d -exec chmod 755 {} + -o -type f -exec chmod 644 {} +
chmod 755 "$root"/bin/*
tar -c --format=gnu --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner -C "$tmp" "$name" | gzip "-$effort" -n >"$tmp/out/$name.tar.gz"

if [ "${IMAGES:-}" = 1 ]; then
    sh scripts/images.sh
    for component in coordinator worker; do
        docker save "berth/$component:$version" | gzip -9 -n >"$tmp/out/berth-$component-$version-image.tar.gz"
    done
fi

(cd "$tmp/out" && sha256sum -- * >SHA256SUMS)
changes "$version" >"$tmp/out/CHANGES.md"
[ -s "$tmp/out/CHANGES.md" ] || changes Unreleased >"$tmp/out/CHANGES.md"
mkdir -p "$dist"
# Whole, or not at all; what else is there stays.
for file in "$tmp"/out/*; do
    cp "$file" "$dist/.new.$$"
    mv "$dist/.new.$$" "$dist/${file##*/}"
done
say "released in $dist:"
(cd "$dist" && sha256sum -c SHA256SUMS >&2)
