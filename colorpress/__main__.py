"""The way in, of `colorpress` and of `python -m colorpress`: signals are obeyed before anything heavy is imported.

Imports take a quarter of a second, and what a signal raises inside one would be a traceback.
"""

from __future__ import annotations

from colorpress.core.signals import obey_at_once

obey_at_once()

from colorpress.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
