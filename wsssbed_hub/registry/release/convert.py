"""A zip of PNGs in the layout of the release, turned into the parts of shards by several processes.

``python -m wsssbed_hub.registry.release.convert RANK`` is one of them. It reads a Conversion from
its standard input and writes what it has done to its standard output, one JSON object a line. A
fork would take over locks that other threads hold, and ``multiprocessing`` would run the caller's
own script once more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsssbed_hub.artifacts.maps import Activations
from wsssbed_hub.artifacts.png_layout import PngZip
from wsssbed_hub.artifacts.shard_writer import PART, write_parts
from wsssbed_hub.evaluation.inspect import MapStatistics, WrongMaps
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.parallel import Stop, at_once

SizeCheck = Callable[[str, tuple[int, int]], object]
"""Is told an image id and (height, width) of its maps, and may raise HubError."""


@dataclass(frozen=True)
class Conversion:
    """The maps of kind ``kind`` in the zip at ``path``, for ``<folder>/.partial``."""

    path: str
    kind: str
    folder: str
    settings: dict[str, Any]


def default_processes() -> int:
    """One for each processor core that this process may use, but no more than eight: each needs
    memory for the zip's table of contents, 180 MiB for the activation maps of COCO."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    return min(cores, 8)


def convert(
    conversion: Conversion,
    maps: PngZip,
    *,
    processes: int,
    check: SizeCheck,
    progress: Callable[[int], None],
    locks: Sequence[int] = (),
) -> MapStatistics:
    """Writes the parts that ``write_maps`` joins, and gives what the maps of them tell.

    ``maps`` are those of ``conversion``. Images of parts that an earlier run finished are not
    checked again. ``check`` and ``progress(images)`` are called by one thread at a time. ``locks``
    are descriptors that the processes keep open: if this one is killed, who waits for a lock on
    them waits for them too. Raises WrongMaps for wrong maps, and HubError as ``write_maps`` does.
    """
    statistics, lock = MapStatistics(conversion.kind), threading.Lock()

    def hear(said: dict[str, Any]) -> None:
        with lock:
            if "done" in said:
                progress(said["done"])
            elif "image" in said:
                check(said["image"], (said["size"][0], said["size"][1]))
            elif "statistics" in said:
                statistics.merge(MapStatistics(**said["statistics"]))
            else:
                raise (WrongMaps if said["wrong"] else HubError)(said["error"])

    processes = min(processes, -(-len(maps) // PART))
    if processes == 1:
        _convert_share(conversion, maps, (0, 1), hear)
        return statistics

    def run(rank: int, stop: Stop) -> None:
        _run(conversion, (rank, processes), hear, stop, locks)

    at_once(run, range(processes), processes)
    return statistics


def _convert_share(
    conversion: Conversion,
    maps: PngZip,
    part: tuple[int, int],
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """The share of ``part``; ``tell`` is what ``convert`` hears."""
    statistics = MapStatistics(conversion.kind)

    def produce(image_id: str) -> np.ndarray | Activations:
        try:
            found = maps.read(image_id)
        except HubError as error:
            raise WrongMaps(str(error)) from None
        one = found.activations[0] if isinstance(found, Activations) else found
        tell({"image": image_id, "size": list(one.shape)})
        statistics.add(image_id, found)
        return found

    told = 0

    def advance(done: int, _: int) -> None:
        nonlocal told
        tell({"done": done - told})
        told = done

    write_parts(
        Path(conversion.folder),
        conversion.kind,
        maps.image_ids,
        produce,
        settings=conversion.settings,
        part=part,
        progress=advance,
    )
    tell({"statistics": asdict(statistics)})


def _run(
    conversion: Conversion,
    part: tuple[int, int],
    hear: Callable[[dict[str, Any]], object],
    stop: Stop,
    locks: Sequence[int],
) -> None:
    """One process and what it says."""
    command = [sys.executable, "-P", "-m", "wsssbed_hub.registry.release.convert", *map(str, part)]
    path = os.pathsep.join(filter(None, sys.path))  # the same modules as here, none from elsewhere
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
        pass_fds=locks,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(asdict(conversion)))
            process.stdin.close()
            for line in process.stdout:
                hear(json.loads(line))
                stop.check()
        except BrokenPipeError:
            pass  # it has ended already
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        how = f"exit code {process.returncode}"
        if process.returncode < 0:
            how = f"signal {-process.returncode}, as where memory runs out"
        raise HubError(
            f"A process that converts {conversion.path} ended with {how}. Run it again, it goes "
            "on; with --jobs 1 it needs the least memory."
        )


def main() -> None:
    """One of the processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first one ends us
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints does not get in between
    rank, processes = int(sys.argv[1]), int(sys.argv[2])
    conversion = Conversion(**json.load(sys.stdin))

    def tell(said: dict[str, Any]) -> None:
        print(json.dumps(said), file=out)

    try:
        try:
            _convert_share(
                conversion, PngZip(Path(conversion.path), conversion.kind), (rank, processes), tell
            )
        except HubError as error:
            tell({"error": str(error), "wrong": isinstance(error, WrongMaps)})
    except BrokenPipeError:
        os._exit(1)  # nobody is there any more


if __name__ == "__main__":
    main()
