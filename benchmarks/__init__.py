"""What is believed only when measured: latency, accuracy, size, memory; tables, pictures and the report."""
