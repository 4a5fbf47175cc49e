#!/usr/bin/env bash
# Everything to be measured on a GPU, in one call of at most 540 s: each phase has a limit of its own and writes its
# figures at once, so that a phase that hangs costs only itself.
#
#   OUT=DIR bash benchmarks/card.sh                          on a card
#   PHASES="rates decode" OUT=DIR bash benchmarks/card.sh    some phases again
#   DEVICE=cpu OUT=DIR bash benchmarks/card.sh               the rehearsal, with tiny sizes
#
# Wheels that the machine lacks (msgspec, for the phase `streams`) are taken from .whl/, if there is such a folder.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:?a directory for the figures}
DEVICE=${DEVICE:-cuda}
PYTHON=${PYTHON:-python3}
tiny=()
[ "$DEVICE" = cpu ] && tiny=(--tiny)
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$PWD/protos${PYTHONPATH:+:$PYTHONPATH}"
if compgen -G '.whl/*.whl' > /dev/null; then
  site=$(mktemp -d)
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$site" .whl/*.whl
  export PYTHONPATH="$PYTHONPATH:$site"
fi
declare -A limits=(
  [rates]=20 [kernels]=60 [families]=70 [decode]=110 [ladder]=50 [first_token]=50 [tuning]=50 [profile]=40 [streams]=50
  [peer]=40
)
mkdir -p "$OUT"
failed=0
for phase in ${PHASES:-rates decode first_token ladder kernels tuning families streams profile peer}; do
  timeout -k 5 "${limits[$phase]:-60}" "$PYTHON" -m benchmarks.card "$phase" --device "$DEVICE" --out "$OUT" "${tiny[@]}"
  status=$?
  [ "$status" = 0 ] || { echo "$phase: ended with status $status"; failed=1; }
done
exit "$failed"
