"""Making what is missing: batches, where they run, limits, retries, and how every step ended."""
