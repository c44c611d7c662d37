"""Any fsspec URL as a registry: buckets to publish to, http trees to read."""
