"""`python -m change VERB ...`, or `prx-change VERB ...`: the commands other than train.py and test.py."""

from __future__ import annotations

import difflib
import importlib
import sys

from change.common.errors import UserError, run_command

# Every verb: the module whose `main` runs it, and what it does.
VERBS = {
    "prepare": ("change.data.prepare", "bring a downloaded data set into the expected layout"),
    "check": ("change.data.check", "look for faults and leaks in a data set"),
    "folds": ("change.data.folds", "write lists for grouped cross-validation"),
    "samples": ("change.synthetic.render", "draw synthetic scenes"),
    "alarms": ("change.evaluation.false_alarms", "measure false alarms on unchanged ground"),
    "compare": ("change.evaluation.compare", "compare runs of test.py"),
    "predict": ("change.rasters.predict", "find change between two rasters or images, or many pairs of them"),
    "area": ("change.rasters.change_area", "estimate the area of change from a sample of interpreted points"),
    "propose": ("change.rasters.propose", "choose tiles of a finished scene that are worth labelling"),
    "tiles": ("change.rasters.tiles", "make a training set from two rasters and polygons of changes"),
    "regrid": ("change.rasters.regrid", "bring the dates of a data folder of GeoTIFFs to one grid"),
    "finetune": ("change.experiments.finetune", "fine-tune a checkpoint on labelled pairs"),
    "experiment": ("change.experiments.experiment", "train and score several arms, as a TOML file says"),
    "leaderboard": ("change.experiments.leaderboard", "make the page of results of an experiment"),
    "average": ("change.prediction.average", "average the weights of several checkpoints"),
    "pack": ("change.prediction.pack", "write a small checkpoint to hand out"),
    "export": ("change.prediction.export", "write a checkpoint as ONNX or plain weights"),
}


def main(arguments: list[str]) -> int:
    """Hand the arguments to the main function of the verb; return its exit code."""
    if arguments[:1] in (["--help"], ["-h"]):
        lines = [f"  {verb:<12}{text}" for verb, (_, text) in VERBS.items()]
        sys.stdout.write("\n".join(["usage: python -m change VERB ...; VERB --help lists its options", "", *lines, ""]))
        return 0
    if not arguments or arguments[0] not in VERBS:
        close = difflib.get_close_matches(arguments[0], VERBS, n=1) if arguments else []
        verb = f"{arguments[0]}: did you mean {close[0]}? Otherwise" if close else "VERB:"
        raise UserError(f"python -m change {verb} choose one of {', '.join(VERBS)}; VERB --help lists its options")
    module, _ = VERBS[arguments[0]]
    code: int = importlib.import_module(module).main(arguments[1:])
    return code


def entry() -> None:
    """Run as the command `prx-change`, or as `python -m change`."""
    run_command(main)


if __name__ == "__main__":
    entry()
