"""Processes that this one starts end with it: `python -m colorpress.core.child PARENT MODULE` is `python -m MODULE`.

It is killed when the process with the number PARENT dies, however that dies, and is not left to work for nobody.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux, in <linux/prctl.h>


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; on other systems than Linux it works on to its end.

    Args:
        parent: the number of the process that started this one; it may have died already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    """Tie this process to its parent, then run the module that the arguments name."""
    _, parent, module = sys.argv
    end_with_parent(int(parent))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
