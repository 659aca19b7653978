"""The documentation: its links lead somewhere, and the commands and options that it names exist."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from functools import cache
from pathlib import Path

import PIL.Image
import pytest

import change.__main__
from change.__main__ import VERBS
from tests.class_pairs import write_class_checkpoint
from tests.conftest import REPOSITORY, run_program, run_verb
from tests.rasters.drawn import scene

FOLDERS = ("", "list", "data", "checkpoints")  # with a README
PAGES = sorted([REPOSITORY / folder / "README.md" for folder in FOLDERS] + list((REPOSITORY / "docs").rglob("*.md")))
PAGES.append(REPOSITORY / "CONTRIBUTING.md")
NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--([a-z][\w-]*)")
VERB = re.compile(r"(?:-m change|prx-change) ([a-z]\w*)")
SCRIPT = re.compile(r"\bbash (\S+\.sh)|\bpython (\S+\.py)|\btorchrun .* (\S+\.py)")
MODULE = re.compile(r"\bpython -m (tests\.\w+)")
PLACE = re.compile(r"(?:change|models|tests|train_script|test_script|docs)/[\w./-]*")
VARIABLE = re.compile(r"(?:^|\s)([A-Za-z_]\w*)=")
PROGRAMS = ("train", "test", *VERBS, "tests.benchmark", "tests.benchmark_scenes")
TAKE_TRAINING_OPTIONS = ("finetune", "experiment")
FOREIGN = {"node_rank", "logdir", "gpus", "shm-size"}  # options of other programs that sentences name


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path, root: Path = REPOSITORY) -> list[str]:
    """Return the relative links of a page that lead to no file below `root`, or to no heading of that file."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    targets = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose)
    dead = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or not file.is_relative_to(root) or (anchor and anchor not in anchors(file)):
            dead.append(target)
    return dead


def blocks(text: str, language: str) -> list[str]:
    """Return the content of a page's code blocks in a language."""
    return [body for found, body in FENCE.findall(text) if found == language]


def commands(text: str) -> list[str]:
    """Return the commands of a page's bash blocks, with their continuation lines and without comments."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in re.sub(r"(^|\s)#.*", "", line).split("&&") if part.strip()]


def inline_code(text: str) -> list[str]:
    """Return the pieces of code in a page's sentences and tables."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


@cache
def options(program: str) -> frozenset[str]:
    """Return the options that the help of a program lists; `program` is train, test, a verb or a module of tests."""
    if program in ("train", "test"):
        names = OPTION.findall(run_program(f"{program}.py", "--help").stdout)
        return frozenset([*names, *(f"no-{name}" for name in names)])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        if program in VERBS:
            change.__main__.main([program, "--help"])
        else:
            importlib.import_module(program).main(["--help"])
    names = OPTION.findall(printed.getvalue())
    return frozenset(names) | (options("train") if program in TAKE_TRAINING_OPTIONS else frozenset())


def program_of(command: str) -> str | None:
    """Return the program whose options a command takes, as `options` names it; None if it is not a program of ours."""
    if verb := VERB.search(command):
        return verb[1]
    if module := MODULE.search(command):
        return module[1]
    if script := SCRIPT.search(command):
        name = Path(next(part for part in script.groups() if part)).name
        if name.startswith(("test", "quick_start")):
            return "test"
        if name.startswith("train"):
            return "train"
    return None


def test_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 220


@pytest.mark.parametrize("name", NAMES)
def test_links(name: str) -> None:
    assert dead_links(REPOSITORY / name) == []


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str) -> None:
    """The verbs, scripts and modules that a page names in its commands and in its sentences exist."""
    missing = []
    for code in [*commands(text_of(name)), *inline_code(text_of(name))]:
        missing += [f"verb {verb}" for verb in VERB.findall(code) if verb not in VERBS]
        paths = [part for found in SCRIPT.findall(code) for part in found if part]
        paths += [f"{module.replace('.', '/')}.py" for module in MODULE.findall(code)]
        missing += [path for path in paths if not (REPOSITORY / path).is_file()]
    assert missing == []


@pytest.mark.parametrize("name", NAMES)
def test_files_exist(name: str) -> None:
    """The files and folders of the code that a page names without a link exist."""
    places = [code for code in inline_code(text_of(name)) if PLACE.fullmatch(code)]
    assert [place for place in places if not (REPOSITORY / place).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_options_exist(name: str) -> None:
    """An option in a command belongs to that command's program; one in a sentence belongs to one of our programs."""
    wrong = []
    for command in commands(text_of(name)):
        if program := program_of(command):
            ours = re.split(r"\.py\b|\.sh\b|-m change|-m tests", command, maxsplit=1)[1]
            wrong += [f"{command}: --{option}" for option in OPTION.findall(ours) if option not in options(program)]
    known = FOREIGN.union(*map(options, PROGRAMS))
    for code in inline_code(text_of(name)):
        if not code.startswith("pip "):
            wrong += [f"{code}: --{option}" for option in OPTION.findall(code) if option not in known]
    assert wrong == []


@pytest.mark.parametrize("name", NAMES)
def test_variables_exist(name: str) -> None:
    """Every variable before a script is an option of train.py or test.py, or one that a script or experiment reads."""
    experiments = REPOSITORY / "change" / "experiments"
    sources = [*REPOSITORY.glob("*_script/*.sh"), *experiments.glob("*.py"), *experiments.glob("*.toml")]
    sources += [REPOSITORY / "tests" / "run.sh", REPOSITORY / "change" / "common" / "environment.py"]
    known = options("train") | options("test") | set(re.findall(r"\w+", " ".join(path.read_text() for path in sources)))
    wrong = []
    for command in commands(text_of(name)):
        before, script, _ = command.partition("bash ")
        wrong += [variable for variable in VARIABLE.findall(before) if script and variable not in known]
    assert wrong == []


SNIPPETS = {f"{name}:{i}": code for name in NAMES for i, code in enumerate(blocks(text_of(name), "python"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", SNIPPETS)
def test_python_snippets_run(name: str, tmp_path: Path) -> None:
    """Every Python example runs as it is, in a folder that holds the files it names."""
    pair = scene(tmp_path, 64, 64)
    for date, path in zip("AB", pair, strict=True):
        sample = tmp_path / "test_samples" / date / "0_0000.jpg"
        sample.parent.mkdir(parents=True)
        with PIL.Image.open(path) as image:
            image.save(sample)
            image.save(path.with_suffix(".png"))
    write_class_checkpoint(tmp_path / "results" / "mine" / "1.pth")
    (tmp_path / "snippet.py").write_text(SNIPPETS[name], encoding="utf-8")
    done = run_program(tmp_path / "snippet.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_there_are_snippets() -> None:
    assert {name.partition(":")[0] for name in SNIPPETS} >= {"README.md", "docs/rasters.md"}


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading: one\n[a](#a-heading-one) [b](#two) [c](gone.md) [d](https://x.org) [e](page.md#two)\n"
    )
    assert dead_links(page, tmp_path) == ["#two", "gone.md", "page.md#two"]


def test_commands_are_read() -> None:
    text = "```bash\npython train.py --nothing 1 \\\n    --lr 2  # --comment\n```\n`python -m change fly`"
    assert [command.split() for command in commands(text)] == [["python", "train.py", "--nothing", "1", "--lr", "2"]]
    assert program_of(commands(text)[0]) == "train" and program_of("tensorboard --logdir x") is None
    assert all(options(program) for program in PROGRAMS)
    assert {"lr", "cross", "no-cross"} <= options("train") and "nothing" not in options("train")
    assert [VERB.findall(code) for code in inline_code(text)] == [["fly"]]


def test_help_lists_the_verbs() -> None:
    for flag in ("--help", "-h"):
        shown = run_verb(flag)
        assert shown.returncode == 0 and all(f"  {verb} " in shown.stdout for verb in VERBS)
    wrong = run_verb("paint")
    assert wrong.returncode == 2 and "choose one of prepare, check" in wrong.stderr
    typo = run_verb("predcit")
    assert typo.returncode == 2 and "predcit: did you mean predict?" in typo.stderr
