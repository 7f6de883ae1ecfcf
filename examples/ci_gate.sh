#!/bin/sh
# A gate for a model file: first scan it for code, then its weights for behaviour.
# ci_gate.sh package.module:factory w.safetensors clean/ [options of purifier fix, such as --scan]
set -eu
model=$1 weights=$2 images=$3; shift 3
command -v picklescan >/dev/null && picklescan --path "$weights"
purifier fix --model "$model" --weights "$weights" --images "$images" --quiet --force \
  --out purified.safetensors --json report.json "$@" && exit 0 || status=$?
[ "$status" -eq 1 ] && python -c 'import json; [print(f["text"]) for f in json.load(open("report.json"))["findings"]]'
exit "$status"
