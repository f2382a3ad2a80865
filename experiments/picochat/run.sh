#!/bin/sh
# Base, mid and fine-tuning of a small model, each from the weights of the one before, in about ten minutes on two
# cores and without a network: ./experiments/picochat/run.sh [FOLDER OF THE MODEL] [MINUTES OF EACH STAGE]
set -e
cd "$(dirname "$0")/../.."
model=${1:-models/picochat}
minutes=${2:-3}
pico="${PYTHON:-python} picolm.py"

$pico init "$model" --preset tiny
$pico train "$model" base stories --max-minutes "$minutes"
$pico train "$model" mid experiments/picochat/small-mid.json --base-weights base --max-minutes "$minutes"
$pico train "$model" sft experiments/picochat/small-sft.json --base-weights mid --max-minutes "$minutes"
$pico eval "$model" sft spelling --max-bytes 20000

# A conversation, and how to go on with it
questions='Hello!\nWho are you?\nSpell the word planet.\nWrite the word tiger backwards.\n'
printf "$questions" | sed 's/^/> /'
printf "$questions" | $pico chat "$model" sft --temperature 0.5
echo "go on: $pico chat $model sft"
