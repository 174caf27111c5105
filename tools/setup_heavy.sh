#!/bin/sh
# Install torch and the largest of its packages by two pips at once: one alone unpacks 5 GB with one core, for two minutes.
# usage: setup_heavy.sh VENV
# Nothing depends on it: what is not installed here, the install that follows finds missing.
set -eu
python=$1/bin/python
constraints=$(dirname "$0")/../constraints.txt
[ "$(uname -sm)" = "Linux x86_64" ] || exit 0

install() { "$python" -m pip install -q --no-compile --no-deps -c "$constraints" "$@" || true; }

install nvidia-cublas nvidia-cudnn-cu13 nvidia-cufft nvidia-cusparselt-cu13 nvidia-nccl-cu13 &
install torch triton nvidia-cusolver nvidia-cusparse
wait
