#!/bin/sh
# The environment of `wv-bench loader`'s peers: sh tools/setup_bench.sh VENV
# Everything is pinned in bench/constraints.txt, without its dependencies being looked up: they are all in there.
set -eu
venv=$1

"$venv/bin/python" -m pip install -q --no-deps -r bench/constraints.txt

# SPDL's wheel has no FFmpeg. PyAV's has one: links beside SPDL's library, under the names that it asks for.
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for library in "$packages"/av.libs/libav*.so.*; do
    name=$(basename "$library" | sed -E 's/^(libav[a-z]+)-[0-9a-f]+\.so\.([0-9]+).*/\1.so.\2/')
    ln -sf "../../../av.libs/$(basename "$library")" "$packages/spdl/io/lib/$name"
done

# FFCV has no wheel: it is compiled against OpenCV and libturbojpeg of the system, where these are.
if pkg-config --exists opencv4 libturbojpeg 2>/dev/null; then
    "$venv/bin/python" -m pip install -q --no-deps --no-build-isolation ffcv==1.0.2 ||
        echo "FFCV does not build here: its row will say that it is not installed" >&2
else
    echo "FFCV is left out: it needs a C++ compiler, pkg-config, libopencv-dev and libturbojpeg0-dev" >&2
fi
