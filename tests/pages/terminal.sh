#!/bin/bash
# Stands where a program of ours does, for a reader who types a page's commands (machine.sh). What serves until it is stopped is
# given a terminal of its own, in which it goes on, and is waited for until it is ready; all else is the program itself.
set -u
name=${0##*/}
dir=@DIR@
real=@PROGRAMS@/$name
case "$name ${1-}" in
"coordinator " | "coordinator --"* | "worker " | "worker --"*) ready=--ready-file ;;
"berth port-forward" | "berth top") ready= ;;
*)
    if [ "$name ${1-}" = "berth shell" ]; then
        script -qec "$real $*" /dev/null <<<'exit'
    else
        "$real" "$@"
    fi
    code=$?
    [ "$code" = 0 ] || echo "$name $*: $code" >>"$dir/failed"
    exit "$code"
    ;;
esac
number=$(find "$dir" -maxdepth 1 -name 'log.*' | wc -l)
number=$(printf %03d "$number")
log=$dir/log.$number
mark=$dir/ready.$number
: >"$log"
if [ -n "$ready" ]; then
    setsid "$real" "$@" --ready-file "$mark" >"$log" 2>&1 </dev/null &
else
    # It says where it listens.
    setsid "$real" "$@" >"$log" 2>&1 </dev/null &
    mark=$log
fi
pid=$!
ln -sf "$log" "$name.log"
while [ ! -s "$mark" ]; do
    if ! kill -0 "$pid" 2>/dev/null; then
        wait "$pid"
        code=$?
        cat "$log"
        exit "$code"
    fi
    sleep 0.05
done
echo "$pid $name $*" >"$dir/terminals/$number"
