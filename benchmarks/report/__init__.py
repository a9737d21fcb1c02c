"""The report of a benchmark: page, tables, pictures and charts."""
