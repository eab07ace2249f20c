#!/bin/bash
# Stands where an MCP client's command line does (`claude mcp add`): takes what it is told of a server, and says hello to it.
#   claude mcp add NAME -- COMMAND...
#   claude mcp add --transport http NAME URL --header HEADER
set -eu
hello='{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"page","version":"1"}}}'
[ "$1 $2" = "mcp add" ]
shift 2
if [ "$1" = --transport ]; then
    [ "$2" = http ] && [ "$5" = --header ]
    told=$(curl -s "$4" -H "$6" -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' -d "$hello")
else
    [ "$2" = -- ]
    shift 2
    told=$(printf '%s\n' "$hello" | "$@")
fi
printf '%s\n' "$told"
case "$told" in *'"serverInfo"'*) ;; *) exit 1 ;; esac
