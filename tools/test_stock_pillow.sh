#!/bin/sh
# Where Pillow-SIMD has taken Pillow's place, run the tests that decode images on the stock Pillow too; DALI has no Pillow.
# usage: test_stock_pillow.sh VENV
set -eu
python=$1/bin/python
if ! "$python" -c 'import PIL, sys; sys.exit("post" not in PIL.__version__)'; then
    echo "stock Pillow is the image library already: nothing more to test on it"
    exit 0
fi
stock=$1/stock-pillow
version=$(sed -n 's/^pillow==//p' "$(dirname "$0")/../constraints.txt")
[ -f "$stock/pillow-$version.dist-info/METADATA" ] || "$python" -m pip install -q --no-deps --target "$stock" "pillow==$version"
PYTHONPATH=$stock "$python" -c "import PIL; assert PIL.__version__ == '$version', PIL.__version__"
echo "tests of images on Pillow $version:"
PYTHONPATH=$stock exec "$python" -m pytest -q -k "not dali" tests/loader/test_augment.py tests/loader/test_engines.py tests/ingest/test_ingest_check.py tests/ingest/test_ingest_jpeg.py
