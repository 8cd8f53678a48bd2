#!/usr/bin/env bash
# What mlomae does on a real GPU, beside PyTorch on the same card:
# bench/gpu/run.sh [OPTIONS] first|second|third|all|STAGE...
#
#   --dry-run        print the plan and its commands, run nothing
#   --allow-no-gpu   without a GPU end with 0 instead of 3
#   --limit SECONDS  for the whole call; each stage has its own limit too (default 420)
#   --out DIR        where results go (default $OUT, else ./gpu-results)
#
# Builds nothing; where there is `strip`, a stripped copy of the program is run. Needs the program ($MLOMAE, default target/release/mlomae) and Python 3.9 or newer ($PYTHON, default
# python3); the peers and ceilings need a Python with torch ($PEER_PYTHON, default $PYTHON). A stage that fails, or is
# too slow, never stops the others. README.md beside this file says what the results mean.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

# name, seconds, what it shows
stages=(
    "selftest 35 every operation beside plain arithmetic on the processor, at three precisions"
    "facts 30 the card, its driver, the libraries that were found, versions"
    "ceilings 40 what the card reaches in products and copies, by PyTorch"
    "golden 30 golden files on the GPU, at three precisions"
    "bits 40 serial, threaded and repeated runs have the same bits"
    "base 155 preset base in bf16 beside PyTorch: strict peer compiled, and the published loop in f32"
    "small 85 preset small beside PyTorch: strict peers in bf16 and tf32, and the published loop"
    "sanitizer 60 memcheck and racecheck of a golden iteration, where compute-sanitizer is installed"
    "timeline 90 overlap of the levels at lag 0 and 1, and how busy the GPU is"
    "base-tf32 125 preset base in tf32 beside the strict peer, compiled"
    "base-f32 135 preset base in f32 beside the strict peer, compiled"
    "graphs 75 presets tiny and small with CUDA graphs and without, in turns"
    "products 90 each product of base and small by itself, as a share of a product of 8192 x 8192"
)
first="selftest facts ceilings golden bits base small"
second="sanitizer timeline base-tf32 base-f32"
third="graphs products"

MLOMAE=${MLOMAE:-$root/target/release/mlomae}
PYTHON=${PYTHON:-python3}
PEER_PYTHON=${PEER_PYTHON:-$PYTHON}
out=${OUT:-$PWD/gpu-results}
total=420 dry='' no_gpu_status=3 inner='' chosen=()

die() {
    echo "run.sh: $1" >&2
    exit "${2:-2}"
}

stage_field() { # NAME FIELD: seconds or words of a stage; fails if there is none of that name
    local line name seconds words
    for line in "${stages[@]}"; do
        read -r name seconds words <<<"$line"
        if [ "$name" = "$1" ]; then
            if [ "$2" = seconds ]; then echo "$seconds"; else echo "$words"; fi
            return 0
        fi
    done
    return 1
}

while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry=1 ;;
    --allow-no-gpu) no_gpu_status=0 ;;
    --limit | --out | --inner)
        [ $# -gt 1 ] || die "$1 needs a value"
        case $1 in --limit) total=$2 ;; --out) out=$2 ;; *) inner=$2 ;; esac
        shift
        ;;
    -h | --help)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    first) read -ra words <<<"$first" && chosen+=("${words[@]}") ;;
    second) read -ra words <<<"$second" && chosen+=("${words[@]}") ;;
    third) read -ra words <<<"$third" && chosen+=("${words[@]}") ;;
    all) read -ra words <<<"$first $second $third" && chosen+=("${words[@]}") ;;
    *)
        stage_field "$1" seconds >/dev/null || die "no stage $1; there are: $first $second $third"
        chosen+=("$1")
        ;;
    esac
    shift
done
[[ $total =~ ^[1-9][0-9]*$ ]] || die "--limit takes seconds, not $total"
[ ${#chosen[@]} -gt 0 ] || [ -n "$inner" ] || die "which stages? first, second, third, all, or of: $first $second $third"

# Seconds that the present stage has left; a second is for what it still writes.
left_of_stage() {
    echo $((${STAGE_SECONDS:-100000} - SECONDS - 1))
}

# go NAME SECONDS COMMAND...: runs a command of the present stage under a limit and keeps what it prints.
go() {
    local name=$inner.$1 limit=$2 begin=$SECONDS status=0 left
    shift 2
    if [ -n "$dry" ]; then
        printf '    %4d s  %s\n' "$limit" "$*"
        return 0
    fi
    left=$(left_of_stage)
    [ "$left" -ge "$limit" ] || limit=$left
    if [ "$limit" -lt 1 ]; then
        status=124
        echo "not begun: the stage had no time left" >"$raw/$name.err"
    else
        # In the foreground, so that what ends the stage ends its commands too.
        timeout --foreground -k 5 "$limit" "$@" >"$raw/$name.out" 2>"$raw/$name.err" || status=$?
    fi
    printf '%s\n' "rc $status" "seconds $((SECONDS - begin))" "limit_s $limit" "command ${*//$'\n'/ }" >"$raw/$name.run"
    echo "    rc $status after $((SECONDS - begin)) s: $*"
    return "$status"
}

stage_selftest() {
    go selftest 35 "$MLOMAE" gpu selftest --json
}

stage_facts() {
    go card 10 nvidia-smi --format=csv \
        --query-gpu=name,driver_version,memory.total,compute_cap,clocks.max.sm,power.limit
    go version 10 "$MLOMAE" --version
    # Once as found by itself, once with the folders of Python's wheels, which all later stages have.
    go gpu_info_alone 15 env LD_LIBRARY_PATH="$plain_library_path" "$MLOMAE" gpu info --json
    go gpu_info 15 "$MLOMAE" gpu info --json
    go torch 25 "$PEER_PYTHON" -c 'import json, torch, platform; print(json.dumps({"torch": torch.__version__,
        "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "python": platform.python_version()}))'
}

stage_ceilings() {
    go ceilings 40 "$PEER_PYTHON" "$here/ceilings.py"
}

stage_golden() {
    local file precision
    for precision in f32 tf32 bf16; do
        for file in tiny rect; do
            go "$file-$precision" 10 "$MLOMAE" verify "$root/tests/fixtures/golden/$file.safetensors" \
                --engine cuda --precision "$precision" --json
        done
    done
}

# Trains the quickstart's networks for a few outer iterations, and keeps the sums of the checkpoint's files.
short_run() { # NAME PRECISION OPTIONS...
    local name=$1 precision=$2 run=$work/$1
    shift 2
    go "$name" 20 "$MLOMAE" train "$root/configs/quickstart.toml" --quiet --max-outer 12 --run-dir "$run" \
        --set eval.at_end=false --set engine=cuda --set "compute.precision=$precision" "$@"
    go "$name-sums" 10 bash -c "cd '$run'/checkpoints/step-* && sha256sum *.safetensors"
}

stage_bits() {
    short_run f32-serial f32 --serial
    short_run f32-threaded f32
    short_run bf16-serial bf16 --serial
    short_run bf16-threaded bf16
    short_run bf16-narrow bf16 --set actors.encoder.queue_cap=1
    short_run bf16-lag1-a bf16 --set pipeline.lag=1
    short_run bf16-lag1-b bf16 --set pipeline.lag=1
}

turns() { # SECONDS OPTIONS...
    local limit=$1 left
    shift
    left=$(left_of_stage)
    [ "$left" -ge "$limit" ] || limit=$left
    go turns "$limit" "$PYTHON" "$here/turns.py" --mlomae "$MLOMAE" --python "$PEER_PYTHON" --seconds $((limit - 10)) \
        --peer-log "$raw/$inner.peers.err" "$@"
}

stage_base() {
    turns 155 --preset base --ours bf16 --turns 3 --rounds 5 \
        --peer "strict-bf16=--savings --compile --precision bf16" --peer "published-f32=--precision f32"
}

stage_small() {
    turns 85 --preset small --ours bf16 --ours tf32 --turns 5 --rounds 15 \
        --peer "strict-bf16=--savings --compile --precision bf16" \
        --peer "strict-tf32-eager=--savings --precision tf32" --peer "published-f32=--precision f32"
}

stage_base-tf32() {
    turns 125 --preset base --ours tf32 --turns 2 --rounds 5 --peer "strict-tf32=--savings --compile --precision tf32"
}

stage_base-f32() {
    turns 135 --preset base --ours f32 --turns 2 --rounds 3 --peer "strict-f32=--savings --compile --precision f32"
}

stage_graphs() {
    local preset
    for preset in tiny small; do
        go "$preset" 36 "$PYTHON" "$here/turns.py" --mlomae "$MLOMAE" --seconds 30 \
            --preset "$preset" --ours bf16 --graphs --turns 3 --rounds 20
    done
}

stage_products() {
    local preset precision
    for preset in base small; do
        for precision in bf16 tf32; do
            go "$preset-$precision" 22 "$MLOMAE" gpu products --preset "$preset" --precision "$precision" --ms 10 \
                --peak 8192 --json
        done
    done
}

stage_sanitizer() {
    local tool sanitizer
    sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer || echo "${dry:+compute-sanitizer}")
    if [ -z "$sanitizer" ]; then
        echo "compute-sanitizer is not installed" >"$raw/$inner.skip"
        return
    fi
    for tool in memcheck racecheck; do
        go "$tool" 30 "$sanitizer" --tool "$tool" --error-exitcode 9 "$MLOMAE" verify \
            "$root/tests/fixtures/golden/tiny.safetensors" --engine cuda --precision bf16 --json
    done
}

stage_timeline() {
    local lag sampler
    for lag in 0 1; do
        if [ -z "$dry" ]; then
            nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader,nounits -lms 200 \
                >"$raw/$inner.samples-lag$lag.csv" 2>/dev/null &
            sampler=$!
        fi
        go "train-lag$lag" 40 "$MLOMAE" train "$here/base.toml" --quiet --max-outer 60 --run-dir "$work/lag$lag" \
            --set engine=cuda --set compute.precision=bf16 --set "pipeline.lag=$lag"
        [ -n "$dry" ] || { kill "$sampler" && wait "$sampler"; } 2>/dev/null
        go "lag$lag" 10 "$MLOMAE" timeline "$work/lag$lag" --json
        [ -n "$dry" ] || rm -rf "$work/lag$lag/checkpoints"
    done
}

if [ -n "$inner" ]; then
    # The libraries that come with Python's packages, for a program that does not find them by itself.
    plain_library_path=${LD_LIBRARY_PATH-}
    export LD_LIBRARY_PATH=${plain_library_path:+$plain_library_path:}${WHEEL_LIBRARIES-}
    raw=${RAW_DIR-} work=${WORK_DIR-}
    "stage_$inner"
    exit 0
fi

if [ -n "$dry" ]; then
    planned=0
    for name in "${chosen[@]}"; do
        limit=$(stage_field "$name" seconds) planned=$((planned + $(stage_field "$name" seconds)))
        echo "$name, at most $limit s: $(stage_field "$name" words)"
        RAW_DIR="RESULTS" WORK_DIR="WORK" bash "$here/run.sh" --dry-run --inner "$name"
    done
    echo "stages: $planned s at most, ended after $total s"
    exit 0
fi

command -v timeout >/dev/null || die "needs the command timeout (coreutils)"
if ! nvidia-smi -L >/dev/null 2>&1; then
    echo "run.sh: no NVIDIA GPU here (nvidia-smi -L finds none), so nothing was run; --dry-run shows the plan" >&2
    exit "$no_gpu_status"
fi
[ -x "$MLOMAE" ] || [ -n "$(command -v "$MLOMAE")" ] || die "no program at $MLOMAE: build it where cargo is
(cargo build --release), copy it here, stripped if it has to be small, and name it in MLOMAE" 66
command -v "$PYTHON" >/dev/null || die "no $PYTHON: it puts results together; name a Python 3.9 or newer in PYTHON" 66

mkdir -p "$out" || exit 74
work=$(mktemp -d) raw=$work/raw
mkdir "$raw"
# `timeout` makes a group of its own for a stage, whose number is its process's.
group=''
end_group() {
    [ -z "$group" ] || kill -KILL -- "-$group" 2>/dev/null
    group=''
}
trap 'end_group; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
# Symbols of the debugger only take time to load. What strip does not take, as a script, is run as it is.
if strip -o "$work/mlomae" "$MLOMAE" 2>/dev/null; then
    MLOMAE=$work/mlomae
fi
WHEEL_LIBRARIES=$("$PEER_PYTHON" -c 'import glob, os, nvidia
files = [file for place in nvidia.__path__ for file in glob.glob(place + "/**/*.so*", recursive=True)]
print(":".join(sorted(set(map(os.path.dirname, files)))))' 2>/dev/null)
export WHEEL_LIBRARIES RAW_DIR=$raw WORK_DIR=$work MLOMAE PYTHON PEER_PYTHON PYTHONUNBUFFERED=1

summary() {
    "$PYTHON" "$here/summary.py" --raw "$raw" --out "$out" "$@" || echo "run.sh: no summary" >&2
    tar -C "$work" -czf "$out/raw.tar.gz" raw
}

for name in "${chosen[@]}"; do
    limit=$(stage_field "$name" seconds) begin=$SECONDS status=0
    left=$((total - SECONDS - 5))
    [ "$left" -ge "$limit" ] || limit=$left
    echo "== $name, at most $limit s: $(stage_field "$name" words)"
    if [ "$limit" -lt 5 ]; then
        echo "no time was left of $total s" >"$raw/$name.skip"
    else
        STAGE_SECONDS=$limit timeout -k 5 $((limit + 3)) bash "$here/run.sh" --inner "$name" &
        group=$!
        wait "$group" || status=$?
        end_group # what it may have left running
    fi
    printf '%s\n' "rc $status" "seconds $((SECONDS - begin))" "limit_s $limit" >"$raw/$name.stage"
    echo "   $name: $((SECONDS - begin)) s, status $status"
    summary --quiet
done
summary
