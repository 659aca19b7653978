"""Logging of the programs, and the versions that a result depends on."""

from __future__ import annotations

import importlib.metadata
import logging
import logging.handlers
import platform
import subprocess
import sys
import warnings

from tqdm import tqdm

from change.common.files import CLONE, IS_CLONE

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "opencv-python-headless")


class Console(logging.Handler):
    """A handler that writes to stderr, above tqdm's progress bars.

    A record logged with extra={"only_in_file": True} is left out.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, unless it is meant for the log file only."""
        if not getattr(record, "only_in_file", False):
            tqdm.write(self.format(record), file=sys.stderr)


def start_logging(process: int = 0) -> logging.handlers.MemoryHandler:
    """Set up the logging of a program: to the console, and to a buffer that a log file can take over later.

    Processes after the first show only errors, with their number. Returns the buffer. This replaces the handlers of the
    root logger and adds a filter of warnings, so only programs may call it, never a library function.
    """
    kept = logging.handlers.MemoryHandler(1000, flushLevel=logging.CRITICAL)
    console = Console(logging.ERROR if process else logging.INFO)
    message = f"[process {process}] %(message)s" if process else "%(message)s"
    logging.basicConfig(level=logging.INFO, format=message, handlers=[console, kept], force=True)
    logging.captureWarnings(True)
    for text in ("Dataset has no geotransform", "The dataset's nodata attribute is shadowing"):  # of rasterio
        warnings.filterwarnings("ignore", message=text)
    return kept


def versions() -> dict[str, str]:
    """Return the versions that a result depends on: Python, packages and, in a clone, the commit of the code."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed by pip"
    found["code"] = commit() or "unknown"
    return found


def commit() -> str:
    """Return the commit of this clone as git describes it; empty without git or outside a clone."""
    if not IS_CLONE:
        return ""
    git = ["git", "-C", str(CLONE), "describe", "--always", "--dirty"]
    try:
        described = subprocess.run(git, capture_output=True, encoding="utf-8", timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return described.stdout.strip()
