#!/usr/bin/env bash
# Everything that is measured on one GPU, in pieces of less than nine minutes.
#
#   benchmarks/gpu.sh                  all pieces, one after the other
#   benchmarks/gpu.sh train xl256      one piece: its words are the name of its file
#
# Numbers go to $OUT, or benchmarks/results: gpu_NAME.json. A piece that fails is reported, and the
# others run. PYTHON is the interpreter; TORCH_PYTHON that of the peer, PYTHON if it is not given.
# It takes jax with its CUDA plugin, flax, optax, orbax-checkpoint, safetensors, numpy, scipy, pillow
# and absl-py; the peer torch and safetensors; the pieces below that read data or configs also
# array-record, grain and ml-collections. All but `devices` see one GPU, the first of
# CUDA_VISIBLE_DEVICES, or of the machine.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
out=${OUT:-benchmarks/results}
export TORCH_PYTHON=${TORCH_PYTHON:-$python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
limit=${LIMIT:-540}
first=${CUDA_VISIBLE_DEVICES:-0}
first=${first%%,*}
wanted=$*
failed=()

# NAME WORDS...: runs benchmarks/WORDS with --json, if the name is wanted.
piece() {
  local name=$1
  shift
  if [ -n "$wanted" ] && [ "${wanted// /_}" != "$name" ]; then return; fi
  found=1
  echo "== $name: $*"
  local visible=(CUDA_VISIBLE_DEVICES="$first")
  if [ "$name" = devices ]; then visible=(); fi
  timeout "$limit" env ${visible[@]+"${visible[@]}"} "$python" benchmarks/"$@" --json="$out/gpu_$name.json" || failed+=("$name")
}

found=
step=(train_step.py --threads=0 --dtype=bfloat16 --rounds=5 --slices=1 --steps=3)
all=--variants=plain,skips,skips+loss
xl=(--size=XL/2 --dtype=bfloat16)
piece train_xl256 "${step[@]}" --size=XL/2 --batch=256 $all
piece train_xl32 "${step[@]}" --size=XL/2 --batch=32 $all
piece train_l256 "${step[@]}" --size=L/2 --batch=256 $all
piece train_b256 "${step[@]}" --size=B/2 --batch=256 $all
piece train_s256 "${step[@]}" --size=S/2 --batch=256 $all
piece train_xl512 "${step[@]}" --size=XL/2 --batch=64 --resolution=512
piece train_remat "${step[@]}" --size=XL/2 --batch=128 --remat=none,full,names
piece train_unroll "${step[@]}" --size=XL/2 --batch=32 --unroll=1,4,28
piece train_attention "${step[@]}" --size=XL/2 --batch=128 --attention=cudnn,xla
piece peer_compiled "${step[@]}" --size=XL/2 --batch=64 --peer=torch --torch_compile=default
piece peer_tuned "${step[@]}" --size=XL/2 --batch=64 --peer=torch \
  --torch_compile=max-autotune-no-cudagraphs
piece peer_eager "${step[@]}" --size=XL/2 --batch=64 --peer=torch --torch_dtype=float16
piece loss loss_overhead.py --threads=0 --size=XL/2 --batch=32 --dtype=bfloat16 \
  --loss_batch=32 --sweep_batch=32 --width=1152 --depth=28 --repeat=5
sample=(sampling.py --threads=0 "${xl[@]}" --rounds=3 --slices=1)
piece sampling_plain "${sample[@]}" --parts=speed --steps=250 --batches=256 --decode
piece sampling_skips "${sample[@]}" --parts=speed --steps=250 --batches=256 --decode --variant=skips
piece sampling_guidance "${sample[@]}" --parts=guidance --steps=50 --batches=64
piece sampling_loop sampling.py --threads=0 --size=B/2 --dtype=bfloat16 --parts=loop --steps=250 \
  --batches=1,8,64 --slices=1
piece startup_xl startup.py "${xl[@]}" --batch=256 --parts=compiling --compile_rounds=1
piece checkpoint_xl checkpoint.py --size=XL/2
piece kernels kernels.py
piece evaluation evaluation.py --batch_sizes=64,256,512 --pictures=8192 --rounds=5
piece devices devices.py
# The rest reads data or configs.
piece startup_first startup.py "${xl[@]}" --batch=256 --parts=first_step
piece data_s data.py --size=S/2 --train_batch=256 --dtype=bfloat16 --train_steps=100 \
  --train_slices=1
piece data_xl data.py --size=XL/2 --train_batch=256 --dtype=bfloat16 --train_steps=30 \
  --train_rounds=5 --train_slices=1

if [ -z "$found" ]; then
  echo "no piece is called $wanted" >&2
  exit 2
fi
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
