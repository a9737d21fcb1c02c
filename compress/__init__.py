"""Making the network smaller: rank -> plan -> prune -> distil -> quantize."""
