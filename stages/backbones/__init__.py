"""Networks that timm does not have, and the loading of checkpoints that others published."""
