#!/usr/bin/env bash
# The GPU battery in one command, made to end within ten minutes on one card:
#     benchmarks/gpu.sh cifar10.npz out
# CUDA tests, the augmentation with its share of a copy's bandwidth, the Trainer's precisions and switches,
# and the race to 94 % against both references, all eager. Named after the folder, some parts run alone, and
# one that is left out otherwise, ten minutes more: the race of compiled against compiled.
#     benchmarks/gpu.sh cifar10.npz out compiled
# Each part writes its figures under the second argument as it goes, so that one that runs out of time
# leaves what it has; a part that fails does not keep the next from running, and the exit status says whether
# any did. fasttricks need not be installed; PYTHON names another interpreter than python3.
set -uo pipefail
usual="tests augment trainer race"
every="$usual compiled"
wanted=${*:3}
wanted=" ${wanted:-$usual} "
for name in $wanted; do
    if (($# < 2)) || [[ " $every " != *" $name "* ]]; then
        echo "usage: benchmarks/gpu.sh DATA.npz FOLDER [PART ...], of $every" >&2
        exit 2
    fi
done
data=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
failed=()

part() { # name, seconds at most, command and its arguments
    local name=$1 limit=$2
    shift 2
    [[ $wanted == *" $name "* ]] || return
    printf '\n=== %s\n' "$name"
    timeout "$limit" "$@" 2>&1 | tee "$out/$name.log" || failed+=("$name")
}

"$python" -c 'import hypothesis, matplotlib, pytest, safetensors, sklearn, torch, torchvision
print(torch.__version__, torch.cuda.get_device_name())' || exit 2
part tests 100 "$python" -m pytest -v -W default -p no:cacheprovider -m cuda tests
part augment 60 "$python" benchmarks/augment.py --devices cuda --repeats 3 --output "$out/augment.json"
part trainer 150 "$python" benchmarks/trainer.py --sections precision switches --repeats 1 --steps 20 \
    --output "$out/trainer.json"
part race 250 "$python" benchmarks/time_to_accuracy.py --data "$data" --output "$out/race" \
    --runs airbench94_muon=3 --runs fulcrum_e1=3 --runs speedrun=3
part compiled 600 "$python" benchmarks/time_to_accuracy.py --data "$data" --output "$out/compiled" \
    --runs airbench94_muon_compiled=3 --runs speedrun_compiled=3
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
