"""What all stages share: command line, data streams, training, checkpoints, devices, provenance."""
