"""Train PRX-Change: one pass, chosen by flags. `python train.py --help` lists the options."""

from __future__ import annotations

import logging
import logging.handlers
from collections.abc import Mapping
from typing import Any

from change.common.errors import check_first, run_command
from change.training.recipes import parse_train

if __name__ == "__main__":
    check_first(parse_train)

from change.checkpoint import PassRecord, pass_name
from change.common import distributed
from change.common.command_line import to_flat
from change.common.devices import choose_device
from change.common.logs import start_logging
from change.data.sources import hashes_of_sources
from change.training.data import check_same_pairs, open_data, use_cache
from change.training.interruption import Interrupted
from change.training.parts import build_parts, describe_setup
from change.training.precision import Precision, algorithms
from change.training.run_folder import Run, hold_run
from change.training.start import plan_run
from change.training.trainer import Training

log = logging.getLogger("train")


@distributed.join()
def main(arguments: list[str]) -> int:
    """Parse, build, run; return the exit code."""
    kept_log = start_logging(distributed.rank())
    given = parse_train(arguments)
    with hold_run(given):
        return train(given, kept_log)


def train(given: Mapping[str, Any], kept_log: logging.handlers.MemoryHandler) -> int:
    """Build and run one pass; return the exit code. `given`: the options on the command line."""
    plan = plan_run(given)
    if plan.done:
        check_same_pairs(plan, given)
        log.info("%s: all %d epochs are done, nothing left to do", plan.weights_path, plan.options.run.epoch)
        return 0
    options, state = plan.options, plan.state
    device = choose_device(options.compute.device)
    precision = Precision(state.precision_name if state else options.compute.number_format(), device)
    with algorithms(options.compute.deterministic, precision):
        data = open_data(options, device, state)
        parts = build_parts(options, precision, state, data)
        data = use_cache(data, options, device)
        distributed.wait()  # process 0 writes only after all have checked the folder
        done = state.progress if state else None
        run = Run(plan.folder, plan.name, kept_log, done.epoch if done else 0, writes=distributed.rank() == 0)
        run.open_board(to_flat(options), done.steps if done else 0)
        record = PassRecord(
            pass_name(parts.template.config),
            sources=hashes_of_sources(data.train),
            options=to_flat(options),
            versions=describe_setup(precision),
        )
        training = Training(options=options, parts=parts, data=data, run=run, record=record)
        if state:
            training.load_state(state)
        log.info("%s pass on %s", record.name, training.position())
        try:
            training.fit()
        except Interrupted as stop:
            log.info("%s", stop)
            return stop.code
    log.info("done: %s, %s", training.outcome(), run.best_path)
    return 0


if __name__ == "__main__":
    run_command(main)
