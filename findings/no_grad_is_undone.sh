#!/usr/bin/env bash
# torch 2.13.0, seen 2026-12-01: leaving inference mode inside of no_grad turns gradients on again.
#
# Guessed before running: `inference_mode(False)` undoes inference mode alone, so that `no_grad` around it stays in force.
# Seen: gradients are recorded inside. A library that leaves inference mode to make ordinary tensors, and is called under
# `no_grad`, has its results hold the graph, and the memory of all that they came from.
source "$(dirname "$0")/setup.sh"
python_with numpy
"$PYTHON" - <<'PYTHON'
import torch

print("torch", torch.__version__)
weights = torch.nn.Parameter(torch.ones(3))
with torch.no_grad():
    outside = torch.is_grad_enabled(), (2 * weights).requires_grad
    with torch.inference_mode(False):
        inside = torch.is_grad_enabled(), (2 * weights).requires_grad
    after = torch.is_grad_enabled(), (2 * weights).requires_grad
print(f"gradients are on, and recorded: under no_grad {outside}, under inference_mode(False) in it {inside}, after {after}")
assert outside == after == (False, False), "no_grad has changed"
assert inside == (True, True), "no_grad stays in force now"
print("as found: inference_mode(False) turns gradients on")
PYTHON
