#!/bin/sh
# Build the turbo engine's kernel where a C compiler and libjpeg-turbo's headers are; else the loader decodes with Pillow. Says which.
# usage: setup_turbo.sh VENV
set -eu
python=$1/bin/python
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cd "$(dirname "$0")/.."
# A kernel of older source must not stay where the new one does not build.
kernel=$(ls loader/wv_loader/_turbo*.so 2>/dev/null || true)
if [ -n "$kernel" ] && [ loader/wv_loader/_turbo.c -nt "$kernel" ]; then
    rm -rf "$kernel" build/lib.*/wv_loader/_turbo*
fi
"$python" setup.py -q build_ext --inplace >"$log" 2>&1 || true
if "$python" -c 'import wv_loader._turbo' 2>/dev/null; then
    "$python" -c 'from wv_loader.engine import make_engine; print("decode engine: turbo,", make_engine("turbo").description)'
else
    grep -m 1 -i -E 'error|not found' "$log" >&2 || true
    echo "decode engine: Pillow (the three times faster turbo wants a C compiler, python3-dev and libjpeg-dev; then 'make setup' again)"
fi
