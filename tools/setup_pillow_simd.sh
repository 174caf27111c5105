#!/bin/sh
# Put Pillow-SIMD in Pillow's place where it can be built with every format; else stay on Pillow. Says which.
# usage: setup_pillow_simd.sh VENV [wheel]
# Does nothing where Pillow-SIMD is in place already. WV_PILLOW=stock keeps Pillow. With `wheel` it is only built, for a
# later call: that needs nothing of what pip installs meanwhile.
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

build() {
    flags=
    grep -qw avx2 /proc/cpuinfo 2>/dev/null && flags=-mavx2
    echo "building Pillow-SIMD $version ${flags:+with }$flags ..."
    CC="$cc $flags" "$python" -m pip wheel -q --no-deps --no-binary pillow-simd --no-cache-dir -w "$wheels" \
        "pillow-simd==$version" >"$probe/log" 2>&1 || {
        tail -n 5 "$probe/log" >&2
        stay "Pillow-SIMD did not build, see above"
    }
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
# Built once: pip puts Pillow back whenever it installs something that asks for it.
wheels=$venv/pillow-simd
if ! ls "$wheels/pillow_simd-$version-"*.whl >/dev/null 2>&1; then
    build
fi
[ "${2:-}" != wheel ] || exit 0
"$python" -m pip uninstall -q -y pillow pillow-simd 2>/dev/null
"$python" -m pip install -q --no-deps "$wheels/pillow_simd-$version-"*.whl
formats='"jpg", "webp", "libtiff", "jpg_2000", "zlib", "littlecms2"'
if ! "$python" -c "from PIL import features; assert all(map(features.check, ($formats)))" 2>/dev/null; then
    "$python" -m pip uninstall -q -y pillow-simd
    "$python" -m pip install -q --no-deps "pillow==$(sed -n 's/^pillow==//p' "$here/../constraints.txt")"
    stay "the Pillow-SIMD that was built lacks a format"
fi
echo "image library: Pillow-SIMD $(installed)"
