"""Algorithm 1 at every threshold, every measure, and whether maps fit their dataset."""
