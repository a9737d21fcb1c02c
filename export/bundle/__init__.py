"""A folder ready to ship: a picture graph with its card, an example, checksums and a web page."""
