# Sourced by the scripts: `python_with PACKAGE==VERSION ...` makes $PYTHON in a temporary folder that goes away at exit.
set -euo pipefail
FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT

python_with() {
  "${PYTHON:-python3}" -m venv "$FOLDER/venv"
  # TORCH_INDEX: an index with the build of torch that fits, for example one for processors only.
  "$FOLDER/venv/bin/python" -m pip install --disable-pip-version-check -qq ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
  "$FOLDER/venv/bin/python" -m pip install --disable-pip-version-check -qq "$@"
  PYTHON=$FOLDER/venv/bin/python
  export HF_HUB_OFFLINE=1
  cd "$FOLDER"
}
