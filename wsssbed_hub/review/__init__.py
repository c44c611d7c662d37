"""From somebody's maps to the index: import, check, prove, recompute, contribute."""
