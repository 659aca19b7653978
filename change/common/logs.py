"""Logging of the programs, and the versions that a result depends on."""

from __future__ import annotations

import importlib.metadata
import logging
import logging.handlers
import platform
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "opencv-python-headless")


class Console(logging.Handler):
    """Writes above tqdm's bars instead of into them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        tqdm.write(self.format(record), file=sys.stderr)


def start_logging(process: int = 0) -> logging.handlers.MemoryHandler:
    """Log to the console; keep a copy of what is said until it is known which file it belongs to.

    Of many processes, those after the first say errors alone, with their number.
    """
    kept = logging.handlers.MemoryHandler(1000, flushLevel=logging.CRITICAL)
    console = Console(logging.ERROR if process else logging.INFO)
    message = f"[process {process}] %(message)s" if process else "%(message)s"
    logging.basicConfig(level=logging.INFO, format=message, handlers=[console, kept], force=True)
    logging.captureWarnings(True)
    return kept


def versions() -> dict[str, str]:
    """The versions that a result depends on: Python, packages, and the code's own commit where git knows it."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed by pip"
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        described = subprocess.run(git, capture_output=True, text=True, timeout=10, check=False)
        found["code"] = described.stdout.strip() or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        found["code"] = "unknown"
    return found
