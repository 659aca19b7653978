"""Text is written and read in a stated encoding everywhere: the default is that of the locale, on Windows not UTF-8."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, run_program, train_arguments, write_pairs

TEXT_METHODS = {"read_text": 0, "write_text": 1}  # and the position of their argument `encoding`
PROCESSES = ("run", "Popen", "check_output")
TEMPORARY = ("NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile", "fdopen", "TextIOWrapper")
OTHER_OPENERS = ("rasterio", "memory", "Image", "dataset", "zipfile", "os")  # whose `open` gives no text


def name_of(node: ast.expr) -> str:
    """Return the last name of a function or class: "open" of path.open."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def opens_text(call: ast.Call) -> bool:
    """Tell whether a call of `open` opens a text file: its mode has no b."""
    method = isinstance(call.func, ast.Attribute)
    if isinstance(call.func, ast.Attribute):
        owner = call.func.value
        if name_of(owner) in OTHER_OPENERS or (isinstance(owner, ast.Call) and name_of(owner.func) == "geo"):
            return False
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes += call.args[0 if method else 1 :][:1]
    values = [mode.value for mode in modes if isinstance(mode, ast.Constant)]
    return not any(isinstance(value, str) and "b" in value for value in values)


def calls_without_encoding(source: str) -> Iterator[int]:
    """Yield the lines of a module that read or write text in the encoding of the locale."""
    tree = ast.parse(source)
    handlers = {"FileHandler", "RotatingFileHandler"}
    handlers |= {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(name_of(base).endswith("FileHandler") for base in node.bases)
    }
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or any(keyword.arg == "encoding" for keyword in call.keywords):
            continue
        name, given = name_of(call.func), {keyword.arg: keyword.value for keyword in call.keywords}
        text = any(
            isinstance(value := given.get(key), ast.Constant) and value.value for key in ("text", "universal_newlines")
        )
        if (
            (name in TEXT_METHODS and len(call.args) <= TEXT_METHODS[name])
            or (name == "open" and opens_text(call))
            or name in handlers
            or (name in PROCESSES and text)
            or (name in TEMPORARY and opens_text(call))
        ):
            yield call.lineno


def test_every_text_file_has_an_encoding() -> None:
    files = [REPOSITORY / "train.py", REPOSITORY / "test.py"]
    files += [path for folder in ("change", "models") for path in (REPOSITORY / folder).rglob("*.py")]
    assert len(files) > 80
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}"
        for path in files
        for line in calls_without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_what_is_found() -> None:
    """The search above would find each of these lines, and none of the others."""
    source = """
path.read_text()
path.write_text("text")
open(path)
open(path, "w")
path.open()
path.open("a")
logging.FileHandler(path)
class Log(logging.FileHandler): pass
Log(path)
subprocess.run(command, text=True)
tempfile.NamedTemporaryFile(mode="w")
path.read_text("utf-8")
path.write_text("text", encoding="utf-8")
open(path, "rb")
path.open("wb")
path.open(mode="ab")
rasterio.open(path, "w")
geo("rasterio").open(path)
PIL.Image.open(path)
subprocess.run(command, encoding="utf-8")
"""
    assert list(calls_without_encoding(source)) == [2, 3, 4, 5, 6, 7, 8, 10, 11, 12]


def test_a_log_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: a file handler without encoding would take cp1252."""
    original = logging.FileHandler.__init__

    def windows(
        self: logging.FileHandler, name: str, mode: str = "a", encoding: str | None = None, **rest: Any
    ) -> None:
        original(self, name, mode, encoding or "cp1252", **rest)

    monkeypatch.setattr(logging.FileHandler, "__init__", windows)
    root = tmp_path / "训练"
    write_pairs(root / "train", 2, seed=1)
    write_pairs(root / "val", 1, seed=2)
    result = run_program("train.py", *train_arguments(root, tmp_path / "запуск", epoch=1))
    assert result.returncode == 0, result.stderr
    assert "запуск" in (tmp_path / "запуск" / "log.txt").read_text(encoding="utf-8")


def test_output_in_an_encoding_that_lacks_characters(tmp_path: Path) -> None:
    """A result is printed with escapes where it cannot be printed as it is, without traceback."""
    folder = tmp_path / "训练"
    program = f"""
import sys
from change.common.errors import run_command
def command(arguments):
    sys.stdout.write({str(folder)!r} + "\\n")
    return 0
run_command(command)
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        encoding="cp1252",
        cwd=REPOSITORY,
        env={"PATH": "", "PYTHONIOENCODING": "cp1252"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"\\u8bad\\u7ec3", result.stdout)
