"""The ground floor: errors, files, console, options, processes, stages; it imports nothing of the floors above."""
