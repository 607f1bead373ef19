#!/usr/bin/env bash
# make demo: gets the small default model, serves it, asks it a first question, and leaves the chat running.
# With no terminal attached it prints the answer and ends.
set -euo pipefail
wring=${1:-build/wring}
model=smollm2-135m-instruct
question="Name three primary colours."

"$wring" pull "$model"

log=$(mktemp)
"$wring" serve "$model" --port "${PORT:-0}" 2>"$log" &
server=$!
cleanup() {
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    rm -f "$log"
}
trap cleanup EXIT
trap 'exit 0' INT TERM

# The server logs the address it listens on once it is ready.
address=
for _ in $(seq 600); do
    address=$(sed -n 's/.*event=listening.* url=\([^ ]*\).*/\1/p' "$log")
    [ -n "$address" ] && break
    kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
    sleep 0.1
done
[ -n "$address" ] || { echo "demo: the server did not start" >&2; cat "$log" >&2; exit 1; }

echo
echo "  > $question"
echo
body='{"model":"'$model'","temperature":0,"max_tokens":120,"messages":[{"role":"user","content":"'$question'"}]}'
answer=$(curl -sS --fail-with-body "$address/v1/chat/completions" -H 'Content-Type: application/json' -d "$body")
python3 -c 'import json,sys; print(json.load(sys.stdin)["choices"][0]["message"]["content"])' <<<"$answer"
echo
if [ ! -t 0 ] || [ ! -t 1 ]; then
    exit 0
fi
echo "  Chat in a browser:  $address/"
echo "  OpenAI base URL:    $address/v1"
echo "  Ctrl-C ends the server."
wait "$server"
