"""Networks whose code calls `torch.autocast`, asked in float32, which their files compute in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch


@contextmanager
def without_autocast() -> Iterator[set[str]]:
    """Inside the block `torch.autocast` does nothing, wherever it stands; the set is of the types it would have taken.

    It is a decorator and a context inside the code of others, and torch.export would keep it in the graph, so its
    class is changed for the while, in this process.
    """
    kind, asked = torch.amp.autocast_mode.autocast, set[str]()

    def enter(self: Any) -> Any:
        # Of a GPU that is not there, or switched off, it does nothing in any case.
        if getattr(self, "_enabled", False) and self.fast_dtype is not None:
            asked.add(str(self.fast_dtype).removeprefix("torch."))
        return self

    with patch.object(kind, "__enter__", enter), patch.object(kind, "__exit__", lambda self, *_: None):
        yield asked
