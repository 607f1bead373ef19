#!/usr/bin/env bash
# gpu.sh: all that a GPU is needed for, in one call of at most eight minutes; prints one table last.
#
#   tests/bench/gpu.sh [TARBALL]
#
# The programs are those of TARBALL (made by make dist); else those beside this file where it was unpacked from one; else
# those of the newest build/wring-*.tar.gz; else they are built (make CUDA=1), which takes minutes of the eight. Then: the
# op suite, logits of small models against the CPU, `wring bench` on models made up in place, the speed of the ops, prefill
# by cuBLAS, a load test of the server, and memory and race checks by compute-sanitizer. Every step has its own limit and a
# line of progress. Those of the first three make 5 1/4 minutes together, so that with a tarball they always fit; of the
# others, what does not fit in the eight minutes is skipped and said so.
#
# Rows go to DATE-DEVICE-COMMIT.csv in tests/bench/results, and what the steps printed to build/gpu; where OUT is set, the
# rows go to $OUT and the rest to $OUT/logs.tgz: two files. The table has the models, the counts and the slowest ops.
# Exit code: 0 all that ran passed, 1 something failed, 3 no GPU here: nothing measured.
# SHAPE (llama-3.1-8b), FORMS (bf16 q8 q4), SECONDS_MAX (480) and DEVICE (cuda, cuda:N) may be set; DEVICE=cpu tries this file.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
shape=${SHAPE:-llama-3.1-8b}
forms=${FORMS:-bf16 q8 q4}
limit=${SECONDS_MAX:-480}
device=${DEVICE:-cuda}
export CUDA_DEVICE_ORDER=PCI_BUS_ID # so that N means the same to CUDA as to nvidia-smi
work=$(mktemp -d)
SECONDS=0
failures=0
skipped=0

say() {
    printf '[%3d s] %s\n' "$SECONDS" "$*"
}

if ! nvidia-smi -L >"$work/gpus" 2>/dev/null && [ ! -e /dev/nvidiactl ]; then
    rm -rf "$work"
    echo "no GPU here: nothing measured"
    exit 3
fi
# gpu_name N: its name; without nvidia-smi nobody knows.
gpu_name() {
    nvidia-smi -i "$1" --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr -d ','
}
case $device in
    cpu) gpu=CPU ;;
    cuda:*) gpu=$(gpu_name "${device#cuda:}") ;;
    *) gpu=$(gpu_name 0) ;;
esac
gpu=${gpu:-GPU}

tarball=${1:+$(realpath "$1")}
out=${OUT:+$(realpath -m "$OUT")}
cd "$top" || exit 1
results=${out:-tests/bench/results}
logs=${out:+$work/logs}
logs=${logs:-$top/build/gpu}
mkdir -p "$results" "$logs" || exit 1

trap '[ -z "$out" ] || tar -C "$work" -czf "$out/logs.tgz" logs; rm -rf "$work"' EXIT

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
    if [ -n "$tarball" ]; then
        use_tarball "$tarball"
    elif [ -x bin/wring ]; then
        bin=$top/bin
    elif [ -n "$newest" ]; then
        use_tarball "$newest"
    else
        say "building (make CUDA=1 dist)"
        make CUDA=1 -j"$(nproc)" dist >"$logs/build.log" 2>&1 && use_tarball "$(ls -t build/wring-*.tar.gz)"
    fi
}

# cuBLAS is the machine's: the toolkit's, that of make deps CUDA=1, or one that pip installed. Prints the folder of a library
# that the loader would not find by itself; fails when there is none.
cublas_folder() {
    local folder others=${LD_LIBRARY_PATH:-}
    ldconfig -p 2>/dev/null | grep 'libcublasLt\.so\.1[23]' >/dev/null && return
    for folder in ${others//:/ } /usr/local/cuda*/lib64 "$top/.cache/cublas/lib" $(python3 -c '
import glob, sys
for p in sys.path: print(*glob.glob(p + "/nvidia/*/lib"))' 2>/dev/null); do
        if compgen -G "$folder/libcublasLt.so.1[23]" >/dev/null; then
            echo "$folder"
            return
        fi
    done
    return 1
}

if ! find_programs; then
    [ ! -e "$logs/build.log" ] || tail -n 5 "$logs/build.log"
    echo "no programs: neither a tarball nor a build"
    exit 1
fi
cublas=no
if folder=$(cublas_folder); then
    cublas=yes
    [ -z "$folder" ] || export LD_LIBRARY_PATH="$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
if ! "$bin/wring" bench --synthetic tiny:bf16 --device "$device" --repeat 1 --prompts "" --batches 1 \
    >"$logs/start.log" 2>&1; then
    tail -n 1 "$logs/start.log"
    echo "there is a GPU ($gpu), but this wring does not use it: nothing measured"
    exit 1
fi
commit=$(cat "$bin/../COMMIT" 2>/dev/null || git describe --always --dirty --abbrev=10 --exclude='*' 2>/dev/null ||
    echo unknown)
date=$(date -u +%Y-%m-%d)
csv=$results/$date-$(tr 'A-Z /' 'a-z--' <<<"$gpu")-$commit.csv
echo "date,device,commit,test,value,unit,bound,fraction" >"$csv"
say "$gpu, commit $commit, programs in $bin, cuBLAS: ${folder:-$cublas}"

# ---- steps -----------------------------------------------------------------------------------------------------------

# row TEST VALUE UNIT [BOUND FRACTION]: bound and value have the same unit; empty where there is none.
row() {
    echo "$date,$gpu,$commit,$1,$2,$3,${4:-},${5:-}" >>"$csv"
}

# skip NAME WHY: no failure, but a row that says so.
skip() {
    say "$1: $2"
    row "$1" skipped ""
    skipped=$((skipped + 1))
}

# step NAME SECONDS COMMAND...: stdout and stderr to NAME.out and NAME.err. False when it failed or was skipped.
step() {
    local name=$1 most=$2 left=$((limit - SECONDS)) from=$SECONDS rc=0 time
    shift 2
    rm -f "$logs/$name.out" "$logs/$name.err"
    if [ "$left" -lt 5 ]; then
        skip "$name" "skipped, no time left"
        return 1
    fi
    time=$((most < left ? most : left))
    timeout -k 5 "$time" "$@" >"$logs/$name.out" 2>"$logs/$name.err" || rc=$?
    if [ "$rc" = 0 ]; then
        say "$name: done in $((SECONDS - from)) s"
        return 0
    fi
    if [ $((SECONDS - from)) -lt "$time" ]; then
        say "$name: FAILED with $rc: $(cat "$logs/$name.err" "$logs/$name.out" | grep -v '^$' | tail -n 1 | cut -c -160)"
    elif [ "$time" -lt "$most" ]; then
        skip "$name" "stopped after $time s, no time left"
        return 1
    else
        say "$name: FAILED, stopped after $time s"
    fi
    row "$name" failed ""
    failures=$((failures + 1))
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
        /^\{.*\}$/ {
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
    step "$name" 55 "$bin/wring" bench --synthetic "$model" --device "$device" --json --prompts 4096 --max-batch 4096 \
        --batches 1,2,4,8 && bench_rows "$model" "$name"
}

# Prefill by cuBLASLt, which is not batch-invariant and therefore an option.
bench_cublas() {
    local model=$1 name=bench-${1/:/-}-cublas
    if [ "$cublas" = no ]; then
        say "$name: left out, cuBLAS is not here"
        row "$model --cublas" "not here" ""
        return
    fi
    step "$name" 30 "$bin/wring" bench --synthetic "$model" --device "$device" --json --prompts 4096 --max-batch 4096 \
        --batches "" --cublas && bench_rows "$model --cublas" "$name"
}

# The speed of the ops; what was measured counts even when the run was stopped. The first line tells the bounds; a CPU has
# more than that one for products.
bench_ops() {
    step checkops-bench 110 "$bin/checkops" --device "$device" --bench --json
    [ -e "$logs/checkops-bench.out" ] || return
    json op form shape rows us gbs copy_percent tflops peak_percent <"$logs/checkops-bench.out" |
        awk -F'\t' -v head="$date,$gpu,$commit" '
            function put(test, value, unit, bound, percent) {
                if (value != "-" && value > 0)
                    printf "%s,%s,%s,%s,%s,%s\n", head, test, value, unit, bound,
                        percent == "-" ? "" : sprintf("%.3f", percent / 100)
            }
            $1 == "bounds" {
                copy = $6
                product = $3 ~ /^copy/ ? $8 : ""
                sub(/;.*/, "", $3)
                put("bound " $3, $6, "GB/s", "", "-")
                put("bound bf16 product", $8, "TFLOP/s", "", "-")
                next
            }
            {
                test = $1 " " $2 " " $3 " x" $4
                put(test, $5, "us", "", "-")
                put(test, $6, "GB/s", $7 == "-" ? "" : copy, $7)
                put(test, $8, "TFLOP/s", $9 == "-" ? "" : product, $9)
            }' >>"$csv"
}

load_model() {
    local model=$1 streams requests failed tok ttft ttft99 itl itl99
    # 64 streams of 256 tokens each, and room for as many again.
    step "load-${model/:/-}" 50 python3 "$here/load.py" --streams 64 --requests 3 --prompt 128 --tokens 128 -- \
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

sanitize() { # TOOL SECONDS
    local tool=$1 sanitizer
    for sanitizer in compute-sanitizer /usr/local/cuda/bin/compute-sanitizer; do
        command -v "$sanitizer" >/dev/null || continue
        step "$tool" "$2" "$sanitizer" --tool "$tool" --error-exitcode 9 "$bin/checkops" --device "$device" --small
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

# The 20 ops that are furthest from the nearer of their two bounds, of those that move a megabyte: less is over before the
# memory is busy.
slowest_ops() {
    awk -F, '$6 == "us" { us[$4] = $5 }
        $6 == "GB/s" { bytes[$4] = us[$4] * $5 * 1e3 }
        $8 != "" && $8 >= best[$4] { best[$4] = $8; line[$4] = $0 }
        END { for (t in line) if (bytes[t] >= 1e6) print best[t] "," line[t] }' |
        sort -t, -k1,1g -k5,5 | head -n 20 | cut -d, -f2-
}

show() {
    awk -F, '{ printf "%-52s %10s %-8s %8s %8s\n", $4, $5, $6, $7, $8 }' | sed 's/ *$//'
}

step checkops 100 "$bin/checkops" --device "$device"
counts checkops
read -ra models < <(logit_models)
step logits 50 "$bin/bench_logits" "$device" "${models[@]}"
counts logits
for form in $forms; do
    bench_model "$shape:$form"
done
bench_ops
for form in $forms; do
    bench_cublas "$shape:$form"
done
for form in $forms; do
    load_model "$shape:$form"
done
sanitize memcheck 90
sanitize racecheck 180 # 50 s on an H200 for 24 rules, more than 90 since all codecs have kernels

echo
op=' x[0-9]+,' # of a row of the op bench
grep -vE "$op" "$csv" | show
echo
echo "the slowest of $(grep -cE "$op.*,us," "$csv") ops, all in the file:"
grep -E "$op" "$csv" | slowest_ops | show
echo
if [ "$failures" = 0 ]; then
    echo "$gpu: all that ran passed in $SECONDS s, $skipped steps skipped; rows in $csv"
    exit 0
fi
echo "$gpu: $failures steps FAILED and $skipped were skipped in $SECONDS s; rows in $csv, what they printed in ${out:-$logs}"
exit 1
