"""Registries: where artifacts are found, had and published."""
