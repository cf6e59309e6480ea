"""A finished export once more: its hashes, and its parity on the references that it keeps. Needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samkit.engine_libraries import RTX
from samkit.export.check import ParityCheck
from samkit.export.engine_headers import check_headers
from samkit.export.references import load_references
from samkit.manifest import Export, graph_file
from samkit.runtime.backends.runner import Runner

_log = logging.getLogger(__name__)


def verify_export(folder: Path) -> dict[str, Any]:
    """Check schema, hashes and engines' headers of an export, repeat its parity on the stored inputs, and return the
    figures.
    """
    export = Export.open(folder, verify=False)
    export.manifest.verify(folder)
    _log.info("%d files have the SHA-256 they were exported with", len(export.manifest.artifacts))
    if headers := check_headers(folder, export.manifest):
        _log.info("%d engines of %s have the header that the manifest speaks of; none was run", headers, RTX.title)
    check = ParityCheck(export.method, export.plan, load_references(export.method, folder))
    figures: dict[str, Any] = {}
    for precision in export.plan.precisions:
        files = {graph: graph_file(graph, precision) for graph in export.plan.graphs}
        figures |= check.of_files(folder, files, precision)
    return figures


def repeat_parity(export: Export, runners: Mapping[str, Runner], precision: str) -> dict[str, dict[str, Any]]:
    """Return the figures of any runners of an export against its stored references; raises ParityError."""
    return ParityCheck(export.method, export.plan, load_references(export.method, export.folder))(runners, precision)
