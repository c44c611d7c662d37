"""A stage in its container image: the engine, the mounts, the command; making an artifact again."""
