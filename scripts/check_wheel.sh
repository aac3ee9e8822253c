#!/usr/bin/env bash
# Builds the wheel, installs it outside of the checkout and runs it in a folder that has an `experiments` package of its own.
# usage: scripts/check_wheel.sh [PYTHON of an environment that has the dependencies]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${1:-.venv/bin/python}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder" .
"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$folder"/*.whl
# The dependencies of the other environment, without what is installed there in place.
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$packages" > "$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
mkdir -p "$folder/work/experiments"
echo 'raise ImportError("the package of the user, not that of the wheel")' > "$folder/work/experiments/__init__.py"
cd "$folder/work"
for package in pallas_kernels rwkv7_jax state_tuning; do
  test -f "$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/$package/py.typed" ||
    { echo "error: the wheel has no $package/py.typed" >&2; exit 1; }
done
site=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for file in index.html api.js column.js page.js style.css icon.svg; do
  test -f "$site/experiments/serve/page/$file" || { echo "error: the wheel has no page/$file" >&2; exit 1; }
done
printf 'Hello\n/stats\n' | "$folder/venv/bin/rwkv7" chat --quiet --max_new_tokens 4 > "$folder/log"
grep -q "tokens" "$folder/log"
small="--tune.steps 2 --data.tasks pocket:arc --evaluate.max_records 4 --report.plots false"
"$folder/venv/bin/rwkv7" --version
for rwkv7 in "$folder/venv/bin/rwkv7" "$folder/venv/bin/python -m rwkv7_jax"; do
  # Two steps are too few to pass: the exit status may be 1.
  $rwkv7 tune --config quickstart $small --overwrite > "$folder/log" || [ $? = 1 ]
  grep -q "^RESULT: " "$folder/log"
done
echo "the wheel works"
