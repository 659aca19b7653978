"""`python -m change VERB ...`: the commands beside train.py and test.py."""

from __future__ import annotations

import importlib

from change.common.errors import UserError, run_command

VERBS = {
    "prepare": "change.data.prepare",
    "check": "change.data.check",
    "folds": "change.data.folds",
    "compare": "change.evaluation.compare",
    "samples": "change.synthetic.render",
    "predict": "change.rasters.predict",
    "pack": "change.prediction.pack",
    "export": "change.prediction.export",
    "experiment": "change.experiments.experiment",
    "finetune": "change.experiments.finetune",
}


def main(arguments: list[str]) -> int:
    """Hand the arguments to the verb's own main; return its exit code."""
    if not arguments or arguments[0] not in VERBS:
        raise UserError(f"python -m change VERB: choose one of {', '.join(VERBS)}; VERB --help lists its options")
    code: int = importlib.import_module(VERBS[arguments[0]]).main(arguments[1:])
    return code


def entry() -> None:
    """Run as the command `prx-change`, or as `python -m change`."""
    run_command(main)


if __name__ == "__main__":
    entry()
