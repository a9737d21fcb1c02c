"""`python -m colorpress` is `colorpress`."""

from colorpress.cli import main

main()
