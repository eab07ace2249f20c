#!/bin/bash
# A machine of its own for a reader of a page: the first process of a PID namespace, in mount and network namespaces.
# What it sets up is seen in there alone, and what it starts ends with it.
#   machine.sh DIR CHECKOUT PROGRAMS    types DIR/page.sh (tests/src/pages.rs makes it)
set -u
page_dir=$1 repo=$2 real=$3
here=$repo/tests/pages

set -e
# What is written goes into memory, and is gone with this machine.
mkdir -p "$page_dir/checkout" "$page_dir/home" "$page_dir/state" "$page_dir/terminals" "$page_dir/over"
mount -t tmpfs tmpfs "$page_dir/over"
over() { # over LOWER AT NAME
    mkdir -p "$page_dir/over/$3/upper" "$page_dir/over/$3/work"
    mount -t overlay -o "lowerdir=$1,upperdir=$page_dir/over/$3/upper,workdir=$page_dir/over/$3/work" overlay "$2"
}
over "$repo" "$page_dir/checkout" checkout
over /etc /etc etc
rm -rf /etc/berth
mkdir /etc/berth
mount -t tmpfs tmpfs /var/lib
mkdir /var/lib/berth
mount --bind "$page_dir/state" /var/lib/berth
# No page may use the engine of the machine that it is tested on.
for socket in /run/docker.sock /var/run/docker.sock; do
    if [ -S "$socket" ]; then mount --bind /dev/null "$socket"; fi
done
# Its network is itself: no other machine is to be reached. These are its names in the pages.
ip link set lo up
ip address add 10.0.0.1/32 dev lo
echo '10.0.0.1 berth.example.org example.org api.example.org' >>/etc/hosts
# A checkout in which `make build` has run. A server takes the terminal that it is typed into: see terminal.sh.
rm -rf "$page_dir/checkout/bin"
mkdir "$page_dir/checkout/bin"
for name in berth coordinator worker; do
    sed "s|@DIR@|$page_dir|; s|@PROGRAMS@|$real|" "$here/terminal.sh" >"$page_dir/checkout/bin/$name"
done
cp "$here/claude.sh" "$page_dir/checkout/bin/claude"
chmod 755 "$page_dir/checkout/bin/"*
ln -s "$real/berth-agent" "$page_dir/checkout/bin/berth-agent"
# An HTTP status that is an error is one of curl's, too.
printf '%s\n' fail-with-body show-error >"$page_dir/home/.curlrc"
export HOME=$page_dir/home PATH=$page_dir/checkout/bin:$PATH
cd "$page_dir/checkout"
set +e

# What the page's commands are put between (tests/src/pages.rs).
page_at() { printf '\036%s\n' "$1"; }
page_ended() {
    [ "$1" = 0 ] || page_failed "$1"
    # One of ours within $(...), whose end the shell does not tell of: see terminal.sh.
    if [ -s "$page_dir/failed" ]; then page_failed "0, but not $(cat "$page_dir/failed")"; fi
}
page_failed() {
    printf '\036failed %s\n' "$1"
    exit 1
}
# Stops what runs in terminals, the newest first. What has ended before it was told to is a failure.
close_terminals() {
    local terminal pid command
    while read -r terminal; do
        read -r pid command <"$terminal"
        rm "$terminal"
        if ! kill "$pid" 2>/dev/null; then
            echo "ended by itself: $command"
            page_failed 1
        fi
        while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
    done < <(find "$page_dir/terminals" -type f | sort -r)
}
set -o pipefail
# shellcheck source=/dev/null
. "$page_dir/page.sh"
