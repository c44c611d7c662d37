"""Measures what the runtime's speed is made of, beside plain loops as published programs have them.

``python -m benchmarks`` writes a table and JSON; ``docs/performance.md`` has the targets.
"""
