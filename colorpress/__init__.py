"""colorpress: train, rank, prune, quantize, export, benchmark and report a UNet colorizer.

This package is the ground floor (errors, files, console, config) and the front door (pipeline, command line).
"""

__version__ = "0.1.0"
