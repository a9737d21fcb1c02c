"""What the weights of a variant are stored in, and what its name ends in for it."""

from __future__ import annotations

# What the name of a variant ends in, after that of the float32 one it was made from: "pruned-int8" is "pruned" in int8.
DERIVED_ENDINGS = ("-int8", "-w8", "-fp16")
