"""What other tools make of the same best.pt, by their own recommended way, measured in the same run as ours."""
