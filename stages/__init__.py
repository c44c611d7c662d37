"""Stages: the commands that make artifacts. ``python -m stages`` lists them."""
