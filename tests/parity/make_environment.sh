#!/bin/sh
# Make the harness's environment, .venv-lm-eval, unless it is there and complete. PYTHON is the interpreter to use.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
wanted=$root/tests/parity/requirements.txt
environment=$root/.venv-lm-eval
if cmp -s "$wanted" "$environment/installed.txt"; then
    exit 0
fi
echo "installing lm_eval into $environment (about 1.5 GB)"
rm -rf "$environment"
"${PYTHON:-python3}" -m venv "$environment"
# torch on its own and by its exact version, which pip takes a CPU build for.
"$environment/bin/pip" install -q "$(grep '^torch==' "$wanted")"
"$environment/bin/pip" install -q --no-deps -r "$wanted"
# Written last: an environment without it is incomplete.
cp "$wanted" "$environment/installed.txt"
