"""Train PRX-Change: one pass, chosen by flags. `python train.py --help` lists the options."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import torch

from change.change_dataloader import (
    Split,
    TrainLoader,
    TrainSamples,
    WholeSamples,
    default_workers,
    find_split,
    rate_of_change,
    shared_images,
    whole_loader,
)
from change.checkpoint import Checkpoint, PassRecord, load_checkpoint, pass_name
from change.common import distributed
from change.common.devices import choose_device
from change.common.errors import UserError, listed, run_command
from change.common.logs import start_logging, versions
from change.data.cache import DecodedCache
from change.data.transforms import ColorJitter, Geometry
from change.options import RECIPES, TrainOptions, continued, parse_given
from change.prediction.compiling import worth_compiling
from change.training.average import WeightAverage
from change.training.precision import Precision, choose_algorithms
from change.training.run_folder import Run, find_state
from change.training.schedule import Interrupted, Schedule
from change.training.start import hand_over, load_encoder
from change.training.trainer import Training, parameter_groups
from models.losses import TrainingLoss
from models.network import build_network

log = logging.getLogger("train")


def find_splits(options: TrainOptions) -> tuple[Split, Split]:
    """The pairs to train on, and val. Raises UserError as `find_split`."""
    lists = Path(options.list) if options.list else None
    train, val = (
        find_split(Path(options.root), part, lists / f"{part}.txt" if lists else None) for part in ("train", "val")
    )
    return train, val


@distributed.joined()
def main(arguments: list[str]) -> int:
    """Parse, build, run; return the exit code."""
    process, processes = distributed.rank(), distributed.processes()
    kept = start_logging(process)
    given = parse_given(TrainOptions, arguments, "Train PRX-Change: base, refine or refine + cross.")
    state = None
    if given.get("continue_run"):
        folder = Path(given["continue_run"])
        name, state = find_state(folder, given.get("best_name", ""))
        options = continued(state["options"], given)
        if state["progress"]["epoch"] == options.epoch:
            if "root" in given and state["data"] != "".join(split.digest() for split in find_splits(options)):
                raise UserError(
                    f"{folder} holds a run that is done, on other pairs than lie in --root {options.root} now: choose "
                    "another --save_path"
                )
            log.info("%s: all %d epochs are done, nothing left to do", folder / f"{name}.pth", options.epoch)
            return 0
    else:
        options = TrainOptions(**{**RECIPES[given.get("recipe", "published")], **given})
        folder, name = Path(options.save_path), options.run_name()
        Run.refuse_existing(folder, name)

    device = choose_device(options.device)
    choose_algorithms(options.deterministic, device)
    precision = Precision(state["precision_name"] if state else options.precision(), device)
    if precision.apex and processes > 1:
        raise UserError("--amp apex is for one process: use --amp bf16 or --amp fp16")
    workers = default_workers(distributed.neighbours()) if options.workers < 0 else options.workers
    train, val = find_splits(options)
    samples = TrainSamples(
        train,
        options.cropsize,
        ColorJitter(*options.jitter_ranges()),
        options.seed,
        geometry=Geometry(*options.scale_range(), options.symmetries, options.swap),
    )
    val_samples = WholeSamples(val, options.trainsize)
    pin = device.type == "cuda"
    train_loader = TrainLoader(samples, options.train_batchsize, workers, pin, options.grad_accum, process, processes)
    val_loader = whole_loader(val_samples, options.val_batchsize, workers, pin, process, processes)
    if shared := shared_images(train, val):
        log.warning(
            "val is no independent test: %d of its pairs share an image file with train: %s; "
            "run python -m change check %s",
            *(len(shared), listed(shared), options.root),
        )

    torch.manual_seed(options.seed)
    config = options.network()
    network = build_network(config)
    template = Checkpoint(config, {})
    if state is None and options.resume:
        start = load_checkpoint(Path(options.checkpoint_path))
        new = hand_over(start, network, config)
        template.lineage = start.lineage
        log.info("start: %s; left out: %s", start.path, listed(start.left_out) or "nothing")
        log.info("new, with their own initialisation: %s", listed(new, len(new)) or "nothing")
    elif state is None and options.pretrained != "none":
        log.info("start: %s", load_encoder(network.encoder, options.backbone, options.pretrained))
    if state is None and options.prior and not options.resume:
        network.head.start_at(rate_of_change(train))
    distributed.synchronise(network, device)
    network.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        parameter_groups(network, options.weight_decay, options.decay_norms),
        lr=options.lr,
        eps=options.eps,
        fused=precision.apex is None,
    )
    precision.prepare(network, optimizer)
    if options.cache == "disk":  # only here, where little is left to go wrong: it can take minutes
        place = Path(options.cache_path or f"{options.root}/.cache")
        samples.read, val_samples.read = (DecodedCache(split, place).read for split in (train, val))

    at = state["progress"] if state else {"epoch": 0, "steps": 0}
    distributed.wait()  # all have looked at what lies in the folder: now the first one may write there
    run = Run(folder, name, kept, from_epoch=at["epoch"], writes=process == 0)
    run.open_board(options, at["steps"])
    made_with = {**versions(), "device": str(device), "precision": precision.name, "processes": str(processes)}
    training = Training(
        TrainingLoss(network, options.k, options.beta, options.l1, options.l2, options.dice),
        WeightAverage(network, options.ema),
        optimizer,
        precision,
        Schedule(
            *(options.lr, options.epoch, options.power, options.decay_epoch),
            options.schedule == "cosine",
            options.warmup,
        ),
        train_loader,
        val_loader,
        run,
        template,
        PassRecord(pass_name(config), options=asdict(options), versions=made_with),
        train.digest() + val.digest(),
        options.seed,
        options.val_epoch,
        options.save_freq,
        options.save_minutes,
        worth_compiling(options.compile, device, options.epoch * len(train_loader)) and not precision.apex,
        options.kept_activations,
        options.keep == "last",
    )
    if state is not None:
        training.load_state(state)
    epoch = training.progress.epoch + 1
    where = f"{device}, {precision.name}" + (f", {processes} processes" if processes > 1 else "")
    log.info("%s pass on %s: epoch %d of %d", pass_name(config), where, epoch, options.epoch)
    try:
        training.fit()
    except Interrupted as stop:
        log.info("%s", stop)
        return stop.code
    best = training.progress
    which = ", last weights kept" if options.keep == "last" else ""
    log.info("done: best val F1 %.4f in epoch %d%s, %s", best.best, best.best_epoch, which, run.best_path)
    return 0


if __name__ == "__main__":
    run_command(main)
