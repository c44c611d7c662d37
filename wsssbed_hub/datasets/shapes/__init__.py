"""``shapes``: a synthetic dataset, drawn from a seed, in the layouts of VOC, COCO and DUTS."""

from wsssbed_hub.datasets.shapes.write import make_shapes

__all__ = ["make_shapes"]
