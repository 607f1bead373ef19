#!/usr/bin/env bash
# quant.sh: what pressed weights cost, ours beside llama.cpp's types and HQQ: one teacher, one text, one judge (wring eval kl).
#
#   tests/bench/quant.sh MODEL CALIBRATION TEXT TABLE.md
#
# MODEL: a folder as wring pull makes it, or a GGUF file; a folder must be of a llama in f32 safetensors with a sentencepiece tokenizer
# where there are to be peers. CALIBRATION and TEXT: files of text. Every form of FORMS ("trellis2", or with a number of bits
# "trellis:2.7") is pressed by wring quantize, every type of TYPES by llama.cpp's library ("Q4_0+imatrix": with an importance matrix,
# of the tokens that ours calibrate with) or by HQQ ("HQQ2"), and all are judged on the first CHUNKS chunks of CTX tokens of TEXT
# with f32 activations, so that only the weights differ. With SPEED=1 `wring bench` times the decode of ours.
#
# llama.cpp is LIBLLAMA, a libllama.so: PyPI's llama-cpp-python builds one, npm's @node-llama-cpp/linux-x64 brings one (npm pack; in
# package/bins/linux-x64, which LD_LIBRARY_PATH must name for its neighbours). PYTHON needs numpy, gguf and sentencepiece, and for HQQ
# hqq and torch. The importance matrix comes from IMPORTANCE, a program of `make bench`. Where there is no peer the table says so. What
# was done lies in WORK and is not done again: remove it after a change of the program.
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
    aqlm2x8g8 lowrank16+trellis2 q4}
types=${TYPES:-Q2_K Q3_K_S Q3_K_M Q4_0 Q4_1 IQ4_NL Q4_K_M Q5_0 Q5_K_M Q6_K Q8_0
    Q4_0+imatrix Q4_1+imatrix IQ4_NL+imatrix Q4_K_M+imatrix Q5_0+imatrix HQQ2 HQQ3 HQQ4}
importance=${IMPORTANCE:-$top/build/obj/gcc/test/bench/importance}
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

# The importance matrix of all types that want one.
weigh() {
    local out=$work/importance.jsonl
    [ -s "$out" ] && return
    say "importance matrix"
    "$importance" "$model" "$work/importance.part" --context "$ctx" --calibrate "$calibration" --log-level error &&
        mv "$work/importance.part" "$out"
}

# press_peer TYPE: TYPE-f32.gguf and what to say of it.
press_peer() {
    local llama=("$python" "$top/tests/bench/peer_quant.py" "$LIBLLAMA" "$model" "$work")
    case $1 in
    HQQ*) "${llama[@]}" && "$python" "$top/tests/bench/peer_hqq.py" "$work" "$1" ;;
    *+imatrix) weigh && "${llama[@]}" "$1" ;;
    *) "${llama[@]}" "$1" ;;
    esac
}

peer() {
    local type=$1 about=$work/llama-$1.json program=llama.cpp
    [ "$type" = "${type#HQQ}" ] || program=hqq
    say "$program $type"
    if [ ! -s "$work/llama-$type.kl.json" ]; then
        press_peer "$type" >"$about" 2>"$work/llama-$type.err" && judge "$work/$type-f32.gguf" "llama-$type"
        rm -f "$work/$type.gguf" "$work/$type-f32.gguf"
    fi
    if [ ! -s "$work/llama-$type.kl.json" ]; then
        say "$type: FAILED: $(tail -n 1 "$work/llama-$type.err")"
        return 1
    fi
    row "$program" "llama-$type" "$(value name "$about")" "$(value layer_bits "$about")" "$(value bits "$about")" \
        "$(value bytes "$about")" -
}

# knows MODULE...: whether PYTHON has them all.
knows() {
    local IFS=,
    "$python" -c "import $*" 2>/dev/null
}

# can TYPE: whether the peer is here; else `missing` says for what it was not measured.
declare -A missing=()
can() {
    local what=""
    if [ ! -e "${LIBLLAMA:-}" ]; then
        what="llama.cpp is missing here (LIBLLAMA)"
    elif ! knows gguf numpy sentencepiece; then
        what="$python has no gguf, numpy and sentencepiece"
    elif [ "$1" != "${1#HQQ}" ] && ! knows hqq torch; then
        what="$python has no hqq and torch"
    elif [ "$1" != "${1%+imatrix}" ] && [ ! -x "$importance" ]; then
        what="IMPORTANCE is missing here (make bench)"
    fi
    [ -n "$what" ] || return 0
    missing[$what]+=" $1"
    return 1
}

# ---- the table -------------------------------------------------------------------------------------------------------

failures=0
: >"$work/rows.part"
for form in $forms; do
    ours "$form" || failures=$((failures + 1))
done
for type in $types; do
    can "$type" || continue
    peer "$type" || failures=$((failures + 1))
done
without=""
for what in "${!missing[@]}"; do
    without+=" Not measured, as $what:${missing[$what]}."
done
[ -z "$without" ] || say "$without"
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
{
    echo "# Pressed weights: $(basename "$model")"
    echo
    echo "    FORMS=\"${forms//$'\n    '/ }\" TYPES=\"${types//$'\n    '/ }\" CHUNKS=$chunks CTX=$ctx \\"
    echo "        tests/bench/quant.sh $(basename "$model") $(basename "$calibration") $(basename "$text") $(basename "$table")"
    echo
    echo "$(date -u +%Y-%m-%d), commit $(git -C "$top" describe --always --dirty --abbrev=10 --exclude='*' 2>/dev/null || echo unknown)," \
        "$(nproc) processors of ${cpu:-an unknown CPU}. KL to the unpressed model in nats a token; errors are over $chunks chunks of" \
        "$ctx tokens.$without"
    echo
    echo "| program | form | bits, layers | bits, all | bytes | KL | 95 % | same first choice | ratio of perplexities | decode, tok/s |"
    echo "|---|---|---|---|---|---|---|---|---|---|"
    cat "$work/rows.part"
} >"$table.part" && mv "$table.part" "$table"
say "$table, $failures failed"
[ "$failures" = 0 ]
