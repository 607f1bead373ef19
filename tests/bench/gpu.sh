#!/usr/bin/env bash
# gpu.sh: all that a GPU is needed for, in one call of at most eight minutes; prints one table last.
#
#   tests/bench/gpu.sh [TARBALL]
#
# The programs are those of TARBALL (made by make dist); else those beside this file where it was unpacked from one; else
# those of the newest build/wring-*.tar.gz; else they are built (make CUDA=1). Then: the op suite, its speed, memory
# and race checks by compute-sanitizer, logits of small models against the CPU, `wring bench` on models made up in place,
# and a load test of the server. Every step has its own limit and a line of progress; what does not fit in the eight
# minutes is skipped and said so.
#
# Rows go to $OUT, else to tests/bench/results, as DATE-DEVICE-COMMIT.csv; what the steps printed lies in $OUT, else in
# build/gpu. Exit code: 0 all passed, 1 something failed, 3 no GPU here: nothing measured.
# SHAPE (llama-3.1-8b), FORMS (bf16 q8 q4), SECONDS_MAX (480) and DEVICE (cuda) may be set.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
shape=${SHAPE:-llama-3.1-8b}
forms=${FORMS:-bf16 q8 q4}
limit=${SECONDS_MAX:-480}
device=${DEVICE:-cuda}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
SECONDS=0
failures=0

say() {
    printf '[%3d s] %s\n' "$SECONDS" "$*"
}

if ! nvidia-smi -L >"$work/gpus" 2>/dev/null && [ ! -e /dev/nvidiactl ]; then
    echo "no GPU here: nothing measured"
    exit 3
fi
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
gpu=${gpu:-GPU}
cd "$top" || exit 1
logs=${OUT:-build/gpu}
mkdir -p "$logs"
logs=$(cd "$logs" && pwd)

# ---- the programs ----------------------------------------------------------------------------------------------------

use_tarball() {
    say "unpacking $1"
    tar -C "$work" -xzf "$1" || return 1
    bin=$(echo "$work"/wring-*/bin)
}

find_programs() {
    local newest
    # shellcheck disable=SC2012
    newest=$(ls -t build/wring-*.tar.gz 2>/dev/null | head -n 1)
    if [ $# -gt 0 ]; then
        use_tarball "$1"
    elif [ -x bin/wring ]; then
        bin=$top/bin
    elif [ -n "$newest" ]; then
        use_tarball "$newest"
    else
        say "building (make CUDA=1 dist)"
        make CUDA=1 -j"$(nproc)" dist >"$logs/build.log" 2>&1 && use_tarball "$(ls -t build/wring-*.tar.gz)"
    fi
}

if ! find_programs "$@"; then
    echo "no programs: neither a tarball nor a build (see $logs/build.log)"
    exit 1
fi
if ! "$bin/wring" bench --synthetic tiny:bf16 --device "$device" --repeat 1 --prompts "" --batches 1 \
    >"$logs/start.log" 2>&1; then
    tail -n 1 "$logs/start.log"
    echo "there is a GPU ($gpu), but this wring does not use it: nothing measured"
    exit 1
fi
commit=$(cat "$bin/../COMMIT" 2>/dev/null || git describe --always --dirty --abbrev=10 --exclude='*' 2>/dev/null || echo unknown)
date=$(date -u +%Y-%m-%d)
results=${OUT:-tests/bench/results}
mkdir -p "$results"
csv=$results/$date-$(tr 'A-Z /' 'a-z--' <<<"$gpu")-$commit.csv
echo "date,device,commit,test,value,unit,bound,fraction" >"$csv"
say "$gpu, commit $commit, programs in $bin"

# ---- steps -----------------------------------------------------------------------------------------------------------

# row TEST VALUE UNIT [BOUND FRACTION]: bound and value have the same unit; empty where there is none.
row() {
    echo "$date,$gpu,$commit,$1,$2,$3,${4:-},${5:-}" >>"$csv"
}

# step NAME SECONDS COMMAND...: stdout and stderr to NAME.out and NAME.err. Fails when the command does.
step() {
    local name=$1 most=$2 left=$((limit - SECONDS)) from=$SECONDS rc=0
    shift 2
    [ "$most" -lt "$left" ] || most=$left
    if [ "$most" -lt 5 ]; then
        say "$name: skipped, no time left"
        row "$name" skipped ""
        failures=$((failures + 1))
        return 1
    fi
    timeout -k 5 "$most" "$@" >"$logs/$name.out" 2>"$logs/$name.err" || rc=$?
    if [ "$rc" = 0 ]; then
        say "$name: done in $((SECONDS - from)) s"
        return 0
    fi
    failures=$((failures + 1))
    if [ "$rc" = 124 ] || [ "$rc" = 137 ]; then
        say "$name: FAILED, stopped after $most s"
    else
        say "$name: FAILED with $rc: $(cat "$logs/$name.err" "$logs/$name.out" | grep -v '^$' | tail -n 1)"
    fi
    row "$name" failed ""
    return 1
}

# counts NAME: the last line "N passed, M failed" as rows.
counts() {
    local passed="" failed=""
    read -r passed failed < <(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed.*/\1 \2/p' "$logs/$1.out" 2>/dev/null | tail -n 1)
    [ -n "$failed" ] || return
    row "$1 passed" "$passed" checks
    row "$1 failed" "$failed" checks
}

# json KEYS: one line of values for each JSON object on stdin; "-" where a key is missing or null.
json() {
    awk -v keys="$*" 'BEGIN { n = split(keys, key, " ") }
        /^\{/ {
            line = ""
            for (i = 1; i <= n; i++) {
                v = "-"
                if (match($0, "\"" key[i] "\": *(\"[^\"]*\"|[^,}]*)")) {
                    v = substr($0, RSTART, RLENGTH)
                    sub(/^"[^"]*": */, "", v)
                    gsub(/"/, "", v)
                    gsub(/,/, ";", v)
                    if (v == "null" || v == "") v = "-"
                }
                line = line (i > 1 ? "\t" : "") v
            }
            print line
        }'
}

# divide A B DIGITS: a quotient, or nothing.
divide() {
    awk -v a="$1" -v b="$2" -v d="$3" 'BEGIN { if (a + 0 > 0 && b + 0 > 0) printf "%.*f", d, a / b }'
}

bench_rows() {
    local model=$1 file=$2 test batch tok gb bw gop peak one=""
    while IFS=$'\t' read -r test batch tok gb bw gop peak; do
        if [ "$gb" != - ]; then
            row "$model $test batch $batch" "$tok" tok/s "$(divide "$tok" "$bw" 1)" "${bw/#-/}"
            row "$model $test batch $batch" "$gb" GB/s "$(divide "$gb" "$bw" 0)" "${bw/#-/}"
            [ "$batch" != 1 ] || one=$tok
            [ "$batch" != 8 ] || row "$model a step of 8 next to one of 1" \
                "$(divide "$(divide 8 "$tok" 9)" "$(divide 1 "${one:-0}" 9)" 3)" times
        else
            row "$model $test" "$tok" tok/s "$(divide "$tok" "$peak" 0)" "${peak/#-/}"
            row "$model $test" "$(divide "$gop" 1000 1)" TFLOP/s "$(divide "$(divide "$gop" "$peak" 3)" 1000 0)" "${peak/#-/}"
        fi
    done < <(json test batch tok_s gb_s bw_frac gop_s peak_frac <"$logs/$file.out")
}

bench_model() {
    local model=$1 name=bench-${1/:/-}
    step "$name" 60 "$bin/wring" bench --synthetic "$model" --device "$device" --json --prompts 4096 --max-batch 4096 \
        --batches 1,2,4,8 && bench_rows "$model" "$name"
}

# Prefill by cuBLASLt, which is not batch-invariant and therefore an option.
bench_cublas() {
    local model=$1 name=bench-${1/:/-}-cublas
    step "$name" 40 "$bin/wring" bench --synthetic "$model" --device "$device" --json --prompts 4096 --max-batch 4096 \
        --batches "" --cublas && bench_rows "$model --cublas" "$name"
}

load_model() {
    local model=$1 streams requests failed tok ttft ttft99 itl itl99
    # 64 streams of 256 tokens each, and room for as many again.
    step "load-${model/:/-}" 60 python3 "$here/load.py" --streams 64 --requests 3 --prompt 128 --tokens 128 -- \
        "$bin/wring" serve --synthetic "$model" --device "$device" --ctx 2048 --max-seqs 64 --kv-size 8G || return
    IFS=$'\t' read -r streams requests failed tok ttft ttft99 itl itl99 < <(
        json streams requests failed tok_s ttft_ms ttft_p99_ms itl_ms itl_p99_ms <"$logs/load-${model/:/-}.out")
    row "$model serve $streams streams" "$tok" tok/s
    row "$model serve $streams streams failed of $requests" "$failed" requests
    row "$model serve $streams streams first token median" "$ttft" ms
    row "$model serve $streams streams first token 99 %" "$ttft99" ms
    row "$model serve $streams streams between tokens median" "$itl" ms
    row "$model serve $streams streams between tokens 99 %" "$itl99" ms
}

sanitize() {
    local tool=$1 sanitizer
    for sanitizer in compute-sanitizer /usr/local/cuda/bin/compute-sanitizer; do
        command -v "$sanitizer" >/dev/null || continue
        step "$tool" 90 "$sanitizer" --tool "$tool" --error-exitcode 9 "$bin/checkops" --device "$device" --small
        counts "$tool"
        return
    done
    say "$tool: left out, compute-sanitizer is not here"
    row "$tool" "not here" ""
}

# Real models where their files are at hand, and made-up ones.
logit_models() {
    local models=(tiny:f32 tiny:bf16 tiny:q8 tiny:q4 smollm2-135m:bf16)
    local folder=${XDG_DATA_HOME:-$HOME/.local/share}/wring/models
    if [ -e tests/golden/models/stories260K.bin ] && "$bin/wring" import llama2c tests/golden/models/stories260K.bin \
        tests/golden/models/tok512.bin "$work/stories260K" >"$logs/import.log" 2>&1; then
        models+=("$work/stories260K")
    fi
    [ ! -e "$folder/stories15m" ] || models+=("$folder/stories15m")
    echo "${models[@]}"
}

step checkops 120 "$bin/checkops" --device "$device"
counts checkops
read -ra models < <(logit_models)
step logits 60 "$bin/bench_logits" "$device" "${models[@]}"
counts logits
for form in $forms; do
    bench_model "$shape:$form"
    bench_cublas "$shape:$form"
done
for form in $forms; do
    load_model "$shape:$form"
done
if step checkops-bench 60 "$bin/checkops" --device "$device" --bench --json; then
    while IFS=$'\t' read -r op what us gb bw tflop peak; do
        row "$op $what" "$us" us "" ""
        [ "$gb" = - ] || row "$op $what" "$gb" GB/s "$(divide "$gb" "$bw" 0)" "${bw/#-/}"
        [ "$tflop" = - ] || row "$op $what" "$tflop" TFLOP/s "$(divide "$tflop" "$peak" 0)" "${peak/#-/}"
    done < <(json op shape us gb_s bw_frac tflop_s peak_frac <"$logs/checkops-bench.out")
fi
sanitize memcheck
sanitize racecheck

echo
awk -F, 'NR > 1 { printf "%-52s %12s %-8s %10s %9s\n", $4, $5, $6, $7, $8; next }
    { printf "%-52s %12s %-8s %10s %9s\n", "test", "value", "unit", "bound", "fraction" }' "$csv"
echo
if [ "$failures" = 0 ]; then
    echo "$gpu: everything passed in $SECONDS s; rows in $csv"
    exit 0
fi
echo "$gpu: $failures steps FAILED in $SECONDS s; rows in $csv, what they printed in $logs"
exit 1
