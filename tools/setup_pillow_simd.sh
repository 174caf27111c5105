#!/bin/sh
# Put Pillow-SIMD in Pillow's place where it can be built with every format; else stay on Pillow. Says which.
# usage: setup_pillow_simd.sh VENV
# Does nothing where Pillow-SIMD is in place already. WV_PILLOW=stock keeps Pillow.
set -eu
venv=$1
python=$venv/bin/python
here=$(dirname "$0")
version=$(sed -n 's/^pillow-simd==//p' "$here/../constraints.txt")

installed() { "$python" -c 'import PIL; print(PIL.__version__)'; }
stay() {
    echo "image library: Pillow $(installed) ($1)"
    exit 0
}

[ "${WV_PILLOW:-}" != stock ] || stay "WV_PILLOW=stock"
if [ "$(installed 2>/dev/null || true)" = "$version" ]; then
    echo "image library: Pillow-SIMD $version"
    exit 0
fi
cc=${CC:-cc}
command -v "$cc" >/dev/null || stay "no C compiler; with one, 'make setup' builds the faster Pillow-SIMD"
probe=$(mktemp -d)
# OpenJPEG keeps its headers in a folder that carries its version.
includes="$(printf -- '-I%s ' /usr/include/openjpeg-*) -I$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
trap 'rm -rf "$probe"' EXIT
missing=
while read -r header package; do
    printf '#include <stdio.h>\n#include <%s>\n' "$header" >"$probe/h.c"
    # shellcheck disable=SC2086
    "$cc" -fsyntax-only $includes "$probe/h.c" 2>/dev/null || missing="$missing $package"
done <<END
jpeglib.h libjpeg-dev
webp/decode.h libwebp-dev
tiff.h libtiff-dev
openjpeg.h libopenjp2-7-dev
lcms2.h liblcms2-dev
zlib.h zlib1g-dev
Python.h python3-dev
END
[ -z "$missing" ] || stay "for the faster Pillow-SIMD install$missing and run 'make setup' again"
flags=
grep -qw avx2 /proc/cpuinfo 2>/dev/null && flags=-mavx2
echo "building Pillow-SIMD $version ${flags:+with }$flags ..."
if ! CC="$cc $flags" "$python" -m pip wheel -q --no-deps --no-binary pillow-simd --no-cache-dir -w "$probe" "pillow-simd==$version" >"$probe/log" 2>&1; then
    tail -n 5 "$probe/log" >&2
    stay "Pillow-SIMD did not build, see above"
fi
"$python" -m pip uninstall -q -y pillow pillow-simd 2>/dev/null
"$python" -m pip install -q --no-deps "$probe"/*.whl
echo "image library: Pillow-SIMD $(installed)"
