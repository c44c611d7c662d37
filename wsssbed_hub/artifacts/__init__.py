"""An artifact: keys, manifests and their lineage, maps and weights as files."""
