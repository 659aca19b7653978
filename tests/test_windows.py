"""docs/windows.md: its commands can be parsed, and do what the bash scripts do that they replace."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from change.common.command_line import parse_given
from change.experiments.finetune import build_parser
from change.options.test import TestOptions
from change.options.train import TrainOptions
from change.rasters.predict import parse_arguments
from tests.conftest import REPOSITORY
from tests.scripts import commands_of
from tests.test_docs import blocks, text_of

PAGE = text_of("docs/windows.md")
BLOCKS = "\n\n".join(blocks(PAGE, "powershell")).replace("`\n", " ")
REPLACED = dict(re.findall(r"^# (.*bash .*\.sh.*)\n(.+)$", BLOCKS, re.MULTILINE))
KINDS = {"train.py": TrainOptions, "test.py": TestOptions}


def words_of(command: str) -> list[str]:
    """Split a command of the page into the words behind `python`."""
    first, *words = shlex.split(command)
    assert first == "python"
    return words


def read(words: list[str]) -> dict[str, Any]:
    """Parse the arguments of train.py, test.py or a verb; paths in this repository become relative."""
    words = [word.replace(f"{REPOSITORY}/", "") for word in words]
    if words[0] in KINDS:
        return {"program": words[0], **parse_given(KINDS[words[0]], words[1:], "")}
    assert words[:2] == ["-m", "change"]
    return {"verb": words[2], "arguments": words[3:]}


def test_every_command_can_be_parsed() -> None:
    """`parse_given` and the parsers of the verbs exit for an option that does not exist."""
    commands = [line for line in BLOCKS.splitlines() if line.startswith("python")]
    assert len(commands) == len(REPLACED) + 1
    for command in commands:
        read(words_of(command))
    assert "\\\n" not in BLOCKS  # bash's sign for a continuation line
    predict = next(words_of(command) for command in commands if " predict " in command)
    assert parse_arguments(predict[3:]).out == Path("results/changes")
    for command in commands:
        if " finetune " in command:
            given = build_parser().parse_args(words_of(command)[3:])
            assert given.settings.name in ("finetune.toml", "land.toml")


@pytest.mark.parametrize("script", REPLACED)
def test_commands_do_what_the_scripts_do(tmp_path: Path, script: str) -> None:
    """The page gives all options that the script gives, with the same values."""
    before, name = script.split("bash ")
    values = dict(part.split("=") for part in before.split())
    (command,) = commands_of(name, tmp_path, **values)
    expected, found = read(command), read(words_of(REPLACED[script]))
    assert expected and expected.items() <= found.items()


def test_every_script_is_named() -> None:
    scripts = [f"{path.parent.name}/{path.name}" for path in REPOSITORY.glob("*_script/*.sh") if path.name != "run.sh"]
    assert [script for script in scripts if script not in PAGE] == []


def test_the_values_that_the_page_explains() -> None:
    """The example of a value is one of train_levir.sh."""
    (example,) = re.findall(r'`(: "\$\{epoch:=1000\}")`', PAGE)
    assert example in (REPOSITORY / "train_script" / "train_levir.sh").read_text()
