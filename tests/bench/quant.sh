#!/usr/bin/env bash
# quant.sh: what pressed weights cost, ours beside llama.cpp's types: one teacher, one text, one judge (wring eval kl).
#
#   tests/bench/quant.sh MODEL CALIBRATION TEXT TABLE.md
#
# MODEL: a folder as wring pull makes it; of a llama in f32 safetensors with a sentencepiece tokenizer where there are to be peers.
# CALIBRATION and TEXT: files of text. Every form of FORMS ("trellis2", or with a number of bits "trellis:2.7") is pressed by
# wring quantize, every type of TYPES by llama.cpp's library, and all are judged on the first CHUNKS chunks of CTX tokens of
# TEXT with f32 activations, so that only the weights differ. With SPEED=1 `wring bench` times the decode of ours.
#
# The peer is LIBLLAMA, a libllama.so: PyPI's llama-cpp-python builds one, npm's @node-llama-cpp/linux-x64 brings one (npm pack; in
# package/bins/linux-x64, which LD_LIBRARY_PATH must name for its neighbours). PYTHON needs numpy, gguf and sentencepiece. Where there
# is no peer the table says so. What was done lies in WORK and is not done again: remove it after a change of the program.
set -uo pipefail
if [ $# != 4 ]; then
    sed -n '4s/^# *//p' "$0"
    exit 2
fi
top=$(cd "$(dirname "$0")/../.." && pwd)
model=$1 calibration=$2 text=$3 table=$4
wring=${WRING:-$top/build/wring}
work=${WORK:-$top/build/quant/$(basename "$model")}
forms=${FORMS:-trellis2 trellis3 trellis4 trellis:2.5 trellis:3.5 planes2 planes3 planes4 planes:3.5 pvq2 pvq3 pvq4
    lowrank16+trellis2 q4}
types=${TYPES:-Q2_K Q3_K_S Q3_K_M Q4_0 Q4_1 IQ4_NL Q4_K_M Q5_0 Q5_K_M Q6_K Q8_0}
chunks=${CHUNKS:-40} ctx=${CTX:-256} speed=${SPEED:-0} python=${PYTHON:-python3} separator=${SEPARATOR-<|endoftext|>}
mkdir -p "$work" || exit 1

say() {
    printf '[%4d s] %s\n' "$SECONDS" "$*" >&2
}

# value KEY FILE: of the JSON object in FILE; "-" where there is none.
value() {
    local v
    v=$(grep -o "\"$1\": *[^,}]*" "$2" 2>/dev/null | head -n 1 | sed 's/^"[^"]*": *//; s/"//g')
    echo "${v:--}"
}

# judge MODEL NAME: NAME.kl.json.
judge() {
    [ -s "$work/$2.kl.json" ] && return
    "$wring" eval kl "$1" "$model" "$text" --ctx "$ctx" --chunks "$chunks" --separator "$separator" --activations f32 \
        --json --log-level error >"$work/kl.part" 2>"$work/$2.err" && mv "$work/kl.part" "$work/$2.kl.json"
}

# row NAME FORM FILES BITS BYTES SPEED
row() {
    local kl=$work/$2.kl.json
    printf '| %s | %s | %s | %s | %s | %s ± %s | %s | %s ± %s | %s ± %s | %s |\n' "$1" "$3" "$4" "$5" "$6" "$(value kl "$kl")" \
        "$(value kl_err "$kl")" "$(value kl95 "$kl")" "$(value top1 "$kl")" "$(value top1_err "$kl")" \
        "$(value ppl_ratio "$kl")" "$(value ppl_ratio_err "$kl")" "$7" >>"$work/rows.part"
}

press_ours() {
    local form=$1 name=${1//:/-} bits=()
    [ -d "$work/$name" ] && return
    [ "$form" = "${form#*:}" ] || bits=(--bits "${form#*:}")
    "$wring" quantize "$model" "$work/$name" --codec "${form%:*}" "${bits[@]}" --context "$ctx" --calibrate "$calibration" \
        --log-level error >"$work/$name.log" 2>&1
}

ours() {
    local form=$1 name=${1//:/-} tok=-
    say "$form"
    if ! press_ours "$form" || ! judge "$work/$name" "$name"; then
        say "$form: FAILED: $(cat "$work/$name".{log,err} 2>/dev/null | tail -n 1)"
        return 1
    fi
    if [ "$speed" = 1 ]; then
        "$wring" bench "$work/$name" --json --prompts "" --batches 1 >"$work/$name.bench.json" 2>/dev/null
        tok=$(value tok_s "$work/$name.bench.json")
    fi
    local kl=$work/$name.kl.json
    row wring "$name" "$form" "$(value layer_bits "$kl")" "$(value bits "$kl")" "$(value bytes "$kl")" "$tok"
}

peer() {
    local type=$1 about=$work/llama-$1.json
    say "llama.cpp $type"
    if [ ! -s "$work/llama-$type.kl.json" ]; then
        "$python" "$top/tests/bench/peer_quant.py" "$LIBLLAMA" "$model" "$work" "$type" >"$about" 2>"$work/llama-$type.err" &&
            judge "$work/$type-f32.gguf" "llama-$type"
        rm -f "$work/$type.gguf" "$work/$type-f32.gguf"
    fi
    if [ ! -s "$work/llama-$type.kl.json" ]; then
        say "$type: FAILED: $(tail -n 1 "$work/llama-$type.err")"
        return 1
    fi
    row llama.cpp "llama-$type" "$(value name "$about")" "$(value layer_bits "$about")" "$(value bits "$about")" \
        "$(value bytes "$about")" -
}

# ---- the table -------------------------------------------------------------------------------------------------------

failures=0
: >"$work/rows.part"
for form in $forms; do
    ours "$form" || failures=$((failures + 1))
done
missing=""
if [ -z "${types// /}" ]; then
    missing="No peer was asked for."
elif [ ! -e "${LIBLLAMA:-}" ]; then
    missing="llama.cpp is missing here (LIBLLAMA): none of its types was measured."
elif ! "$python" -c 'import gguf, numpy, sentencepiece' 2>/dev/null; then
    missing="$python has no gguf, numpy and sentencepiece: none of llama.cpp's types was measured."
else
    for type in $types; do
        peer "$type" || failures=$((failures + 1))
    done
fi
[ -z "$missing" ] || say "$missing"
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
{
    echo "# Pressed weights: $(basename "$model")"
    echo
    echo "    FORMS=\"${forms//$'\n    '/ }\" TYPES=\"$types\" CHUNKS=$chunks CTX=$ctx \\"
    echo "        tests/bench/quant.sh $(basename "$model") $(basename "$calibration") $(basename "$text") $(basename "$table")"
    echo
    echo "$(date -u +%Y-%m-%d), commit $(git -C "$top" describe --always --dirty --abbrev=10 --exclude='*' 2>/dev/null || echo unknown)," \
        "$(nproc) processors of ${cpu:-an unknown CPU}. KL to the unpressed model in nats a token; errors are over $chunks chunks of" \
        "$ctx tokens.${missing:+ $missing}"
    echo
    echo "| program | form | bits, layers | bits, all | bytes | KL | 95 % | same first choice | ratio of perplexities | decode, tok/s |"
    echo "|---|---|---|---|---|---|---|---|---|---|"
    cat "$work/rows.part"
} >"$table.part" && mv "$table.part" "$table"
say "$table, $failures failed"
[ "$failures" = 0 ]
