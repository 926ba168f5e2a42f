#!/usr/bin/env bash
# Makes the pictures of docs/gallery.md: trains three small networks on handwritten digits, on the CPU, and samples from
# them. RUNS chooses where the runs are (default runs/gallery); started again, it goes on with them.
set -euo pipefail
trap 'exit 130' INT
start_dir="$PWD"
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
runs="${RUNS:-$ROOT/runs/gallery}"
case "$runs" in /*) ;; *) runs="$start_dir/$runs" ;; esac
prepare_venv requirements-cpu.txt
export JAX_PLATFORMS=cpu

# run NAME ARGUMENTS FLAGS...: one command of the run NAME.
run() {
  local name="$1" arguments="$2"
  shift 2
  .venv/bin/python -m diversedit_jax.main --config="configs/digits.py:$arguments" --workdir="$runs/$name" \
    --config.preview.every=200 --config.preview.columns=5 --config.sample.number=50 "$@"
}
ours() { run ours steps=800 "$@"; }
flow() { run flow method=flow,skips=False,steps=800 "$@"; }
meanflow() { run meanflow method=meanflow,skips=False,steps=800 "$@"; }

for network in ours flow meanflow; do
  "$network" --mode=train
done
# The learning rate has fallen to zero, so the last weights need no average.
last=(--mode=sample --config.sample.weights=params)
for scale in 0 1 2 4; do
  ours "${last[@]}" --config.sampler.guidance_scale="$scale" --config.sample.name="scale-$scale"
done
flow "${last[@]}" --config.sampler.kind=euler --config.sampler.steps=1 --config.sampler.guidance_scale=1 \
  --config.sample.name=one-step
flow "${last[@]}" --config.sampler.guidance_scale=1 --config.sample.name=20-steps
meanflow "${last[@]}" --config.sample.name=one-step
for network in ours flow; do
  "$network" --mode=analyze --config.analysis.parts=cka --config.sample.weights=params
done

# Few colours make small files.
.venv/bin/python - "$runs" docs/images <<'PYTHON'
import pathlib
import sys

from PIL import Image, ImageOps

runs, images = map(pathlib.Path, sys.argv[1:])
kept = {f'guidance-{scale}': f'ours/samples/scale-{scale}/grid.png' for scale in (0, 1, 2, 4)}
kept |= {f'step-{step}': f'ours/samples/preview-{step:08d}.png' for step in (200, 400, 600, 800)}
kept |= {f'blocks-{name}': f'{name}/analysis/cka.png' for name in ('ours', 'flow')}
kept |= {'flow-1': 'flow/samples/one-step/grid.png', 'flow-20': 'flow/samples/20-steps/grid.png'}
kept |= {'meanflow-1': 'meanflow/samples/one-step/grid.png'}
for name, file in kept.items():
  picture, colours = Image.open(runs / file).convert('RGB'), 64
  if 'samples' in file:  # A grid: without its caption, which the page has.
    picture, colours = picture.crop((0, 30, *picture.size)), 12
    picture = picture.crop(ImageOps.invert(picture).getbbox())
  picture.thumbnail((900, 900))
  picture.quantize(colours, dither=Image.Dither.NONE).save(images / f'gallery-{name}.png', optimize=True)
PYTHON
echo "Made docs/images/gallery-*.png"
