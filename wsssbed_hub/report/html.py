"""The report as one HTML file that asks for nothing from outside.

Every text is escaped by the template; the page's policy (Content-Security-Policy) lets run only
the script whose hash it names and load only what is inside the file.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from wsssbed_hub.artifacts import pictures
from wsssbed_hub.report import diagram, plots
from wsssbed_hub.report.data import Report
from wsssbed_hub.report.notes import short_digest
from wsssbed_hub.report.pairs import find, fixed_words
from wsssbed_hub.report.table import class_table, pairs_table, results_table
from wsssbed_hub.utils.files import disk_errors, write_whole

if TYPE_CHECKING:
    from jinja2 import Environment


def write_html(report: Report, path: Path) -> None:
    """Writes the report to ``path``, whole or not at all.

    Raises HubError if the disk is full or the folder cannot be written.
    """
    page = render_html(report).encode()
    with disk_errors(path.parent, len(page)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, page)


def render_html(report: Report) -> str:
    """The report as a page. The same report gives the same text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=PackageLoader("wsssbed_hub", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short_digest"] = short_digest
    environment.filters["web_address"] = web_address
    environment.filters["breakable"] = lambda text: escape(text).replace("@", Markup("<wbr>@"))
    script = _source(environment, "script.html")
    curves = [
        (name, series, [diagram.draw(series, panel) for panel in plots.PANELS])
        for name, series in plots.by_activations(report.rows).items()
    ]
    finding = find(report.rows)
    return environment.get_template("report.html").render(
        report=report,
        finding=finding,
        pairs=pairs_table(report, finding),
        results=results_table(report),
        classes=class_table(report),
        curves=curves,
        diagram=diagram,
        legend=_legend(report),
        fixed_words=fixed_words(report.rows),
        style=Markup(_source(environment, "style.html")),
        script=Markup(script),
        script_hash=_hash(script),
    )


def web_address(url: str) -> str:
    """``url`` if it is an http(s) address, else nothing: a link never runs anything."""
    return url if re.match(r"https?://[^\s]+$", url, re.IGNORECASE) else ""


def _source(environment: Environment, name: str) -> str:
    """A file of this package as it is, for what may not be escaped."""
    if environment.loader is None:
        raise LookupError(name)
    return environment.loader.get_source(environment, name)[0].strip()


def _hash(element: str) -> str:
    """The hash by which the page's policy knows the script inside ``<script>…</script>``."""
    inside = re.sub(r"^<script>|</script>$", "", element)
    digest = hashlib.sha256(inside.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _legend(report: Report) -> list[tuple[str, str]]:
    """(colour, name) of each label value that the gallery shows."""
    if report.gallery is None:
        return []
    names = {0: "background", 255: "ignored"} | {
        index + 1: name for index, name in enumerate(report.classes)
    }
    return [
        (pictures.hex_colour(value), names.get(value, f"class {value - 1}"))
        for value in report.gallery.shown
    ]
