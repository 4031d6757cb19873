"""The harness: data, scenarios, stacked training, results and tracking."""

import os

# Threads of one product wait for each other in a loop. GCC's OpenMP, which PyTorch's wheels for Linux have, leaves it
# after milliseconds: where another program wants the core, a stack then takes several times as long. More turns
# make a stack of few runs faster and one beside another program slower: docs/performance.md. It is read when PyTorch is
# loaded, hence here.
if "OMP_WAIT_POLICY" not in os.environ:  # ruff: ignore[non-empty-init-module]
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
