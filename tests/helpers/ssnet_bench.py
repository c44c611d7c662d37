"""The whole stage ``ssnet`` on a bench: its own network, smaller and shorter trained than any that
learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from stages import ssnet
from stages.runtime.checkpoint import load_weights
from stages.ssnet.ssnet import RECIPES, SETTINGS, Method
from wsssbed_hub.artifacts.key_folder import MANIFEST, read_manifest
from wsssbed_hub.artifacts.manifest import Entry

SMALL = {"size": 32, "steps": 2, "batch_size": 4}
MADE = ("label/ssnet-shapes", "sal/ssnet-shapes", "weights/ssnet-shapes")


class Bench:
    """Runs the stage on the small data, into one folder."""

    def __init__(self, data_root: Path, out: Path) -> None:
        self.data_root, self.out = data_root, out

    def options(self, setting: str = "MM", **changes: Any) -> dict[str, Any]:
        options = {
            "target": "shapes",
            "data_root": self.data_root,
            "out": self.out,
            "device": "cpu",
            "workers": 0,
            "recipe": "shapes",
            # The paper's CRF would make one colour of pictures as small as these.
            "set": [f"size={SMALL['size']}", "crf=deeplab"],
            "saliency_crf": "none" if setting in ("M", "MM", "2S") else None,
            "setting": setting,
            "data": None if setting in ("S", "SS") else "shapes",
        }
        if changes.get("weights") is None:
            options |= {"steps": SMALL["steps"], "batch_size": SMALL["batch_size"]}
        return options | changes

    def run(self, setting: str = "MM", method: type[Method] = Method, **changes: Any) -> None:
        ssnet.run("ssnet", method, ssnet.Options(**self.options(setting, **changes)))

    def entry(self, key: str, version: str = "1.0.0") -> Entry:
        return read_manifest(self.out / key).entry(version, "shapes")

    def made(self) -> set[str]:
        return {
            str(p.parent.relative_to(self.out))
            for kind in ("sal", "cam", "label", "weights")
            for p in self.out.glob(f"{kind}/*/{MANIFEST}")
        }

    def contents(self) -> dict[str, str | None]:
        return {key: self.entry(key).content for key in self.made()}

    def network(self, setting: str) -> tuple[Method, Any]:
        """The network that a setting's weights are of, read from its run folder."""
        recipe = replace(RECIPES["shapes"], size=SMALL["size"], crf="deeplab")
        method = Method(recipe, self.out, 6, SETTINGS[setting])
        network = method.build()
        load_weights(network, self.training(setting) / "weights.safetensors")
        return method, network.eval().requires_grad_(False)

    def training(self, setting: str, seed: int = 0) -> Path:
        data = "" if setting in ("S", "SS") else "-shapes"
        return self.out / "runs" / f"ssnet-shapes{data}" / f"seed{seed}" / setting
