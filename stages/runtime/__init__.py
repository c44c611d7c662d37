"""The way of all stages: from a command line to a trained network, and from that to an artifact.

The way of "train, then write": ``catalogue`` finds the stage, ``options`` reads its command line,
``session`` sets this process up, ``training`` gives the trained network (``trainer`` and ``loader``
do the work, ``checkpoint`` keeps it), ``artifacts`` has its maps written. ``study`` is for several
trainings that are measured (``measuring``). What a method says of itself, and may ask for, is in
``method``; ``memory`` is what it remembers of images.

Beneath: ``errors`` (signals and clean ends), ``distributed``, ``device``, ``progress``,
``provenance``; for networks, ``batch_norm`` over several processes.
"""
