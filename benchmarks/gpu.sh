#!/usr/bin/env bash
# Runs all measurements that need a GPU, the most important ones first, in about 12 minutes on one NVIDIA card:
#
#     bash benchmarks/gpu.sh [FOLDER]           # where the results are copied to, results/ by default
#     bash benchmarks/gpu.sh --dry [FOLDER]     # the same on the CPU, with tiny settings, to try the script
#
# Each part has a time limit and writes its JSON as soon as it ends, so a machine that is taken away loses only
# the part that was running. Environment: PYTHON (default "python"), LLM (default smollm2-135m-instruct).
set -uo pipefail
cd "$(dirname "$0")/.."
dry=""
if [ "${1:-}" = "--dry" ]; then dry=1; shift; fi
out=${1:-benchmarks/results}
python=${PYTHON:-python}
llm=${LLM:-smollm2-135m-instruct}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
gpu=$([ -n "$dry" ] && echo -1 || echo 0)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

part() {  # part NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    echo "=== $name: $*"
    local started=$SECONDS
    timeout "$limit" "$@" || echo "--- $name: failed or stopped after $((SECONDS - started)) s (status $?)"
    echo "--- $name: $((SECONDS - started)) s"
    for file in benchmarks/results/*"_gpu"*.json; do
        if [ -e "$file" ] && [ "$out" != benchmarks/results ]; then cp "$file" "$out/"; fi
    done
}

$python -c "import torch, transformers; print(torch.__version__, transformers.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())"

# 1. The tests that are skipped without a GPU.
part tests 180 $python -m pytest -q -x tests/llm/test_cuda.py

# A pipeline for the measurements, on this project's own corpus.
for set in train dev test; do
    $python scripts/convert.py assets/en_$set.jsonl "$work/$set.spacy" --lang en
done
config() { $python -m spacy llmner init config "$work/train.spacy" "$work/dev.spacy" "$work/$1.cfg" --component "$1" --llm "$llm" --force; }
train() {  # train COMPONENT NAME STEPS OPTIONS...
    [ -z "$dry" ] || set -- "$1" "$2" 2 "${@:4}"
    part "train $2" 120 $python -m spacy train "$work/$1.cfg" --output "$work/$2" --gpu-id $gpu \
        --training.max_steps "$3" --corpora.dev.limit 20 "${@:4}"
}
config ember_probe
train ember_probe ember_probe 280

# 2. ember_probe: words per second, compared with the LLM alone, and the cost of entities in a stream.
small=$([ -n "$dry" ] && echo "--rounds 1 --texts 4" || echo "--rounds 5 --texts 80")
part throughput 90 $python -m benchmarks.ember.throughput "$work/ember_probe/model-last" $small \
    --name ember_throughput_gpu
small=$([ -n "$dry" ] && echo "--pairs 1 --tokens 8" || echo "--pairs 6 --tokens 200")
part streaming 90 $python -m benchmarks.ember.streaming "$work/ember_probe/model-last" $small \
    --name ember_streaming_gpu

small=$([ -n "$dry" ] && echo "--rounds 2 --long-rounds 2 --repeats 1" || echo "--rounds 64 --long-rounds 32 --repeats 2")
part "many streams" 90 $python -m benchmarks.ember.many_streams "$work/ember_probe/model-last" $small \
    --name ember_many_streams_gpu

# 3. padellm_ner against the LLM writing one list, with the gold answers, so that little training is enough.
config padellm_ner
train padellm_ner padellm_ner 40
train padellm_ner autoreg_ner 40 --code benchmarks/padellm/autoreg.py --components.padellm_ner.factory autoreg_ner
small=$([ -n "$dry" ] && echo "--sentences 2 --rounds 1" || echo "--sentences 40 --rounds 3")
part padellm 120 $python -m benchmarks.padellm.speed "$work/padellm_ner/model-last" \
    "$work/autoreg_ner/model-last" "$work/test.spacy" --gold $small --name padellm_speed_gpu

# 4. Memory and the self-check by dtype, and one load in 4 bits.
part memory 120 $python -m benchmarks.llm.memory "$llm" --name llm_memory_gpu \
    --device $([ -n "$dry" ] && echo cpu || echo cuda)
part check 60 $python -m spacy llmner check "$llm"

# 5. Training with NCCL, in one process per GPU (here one).
part "data parallel" 120 $python -m torch.distributed.run --nproc-per-node 1 -m spacy_llmner train \
    "$work/ember_probe.cfg" --output "$work/data_parallel" $([ -n "$dry" ] || echo --gpu) \
    --training.max_steps $([ -n "$dry" ] && echo 2 || echo 40) --corpora.dev.limit 20
