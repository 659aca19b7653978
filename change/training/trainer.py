"""The training loop.

Several processes, started by torchrun, share each batch and take the step that one process would take. Three things
differ: batch norms on the CPU, the draws of dropout and points, and the Dice loss, which covers one micro-batch at a
time. Gradients are exchanged during the backward pass of a step's last micro-batch. All processes make the same
exchanges in the same order, so they first agree on whatever only one of them may know: a stop, a save, a score, a loss
that is not finite. Only process 0 writes files.
"""

from __future__ import annotations

import logging
import math
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from change.checkpoint import PassRecord
from change.common import distributed
from change.common.command_line import to_flat
from change.common.devices import DTYPES
from change.common.errors import UserError, list_names
from change.data.loaders import BatchShare
from change.data.samples import Batch
from change.evaluation.table import percent
from change.options.train import TrainOptions
from change.prediction.compiling import Compiled, worth_compiling
from change.prediction.predictor import precision_name
from change.prediction.threshold import NotFiniteError
from change.training.classes import report_classes
from change.training.data import Data
from change.training.interruption import Interrupted, StopSignal
from change.training.pace import Pace
from change.training.parts import Parts
from change.training.recorded import Recorded
from change.training.run_folder import Run
from change.training.run_state import Progress, RunState, unfit_state_error
from change.training.schedule import Schedule, step_seed
from change.training.step import LOSS_NAMES, Pending, weighted_parts
from change.training.validation import Validation, validate

log = logging.getLogger(__name__)

LOG_EVERY = 10  # steps between two reads of the losses, each of which waits for the device


class Training:
    """One training pass: all its epochs."""

    def __init__(self, *, options: TrainOptions, parts: Parts, data: Data, run: Run, record: PassRecord) -> None:
        """Prepare a run.

        Args:
            options: the options of the run.
            parts: network, optimizer and so on, on their device.
            data: the splits and loaders of this process.
            run: the folder and its files.
            record: the record of this pass, without images, scores and epoch.
        """
        self.options, self.data, self.run, self.record = options, data, run, record
        self.loss, self.average, self.optimizer = parts.loss, parts.average, parts.optimizer
        self.precision, self.template = parts.precision, parts.template
        self.schedule = Schedule(
            lr=options.optimizer.lr,
            epochs=options.run.epoch,
            power=options.optimizer.power,
            every=options.optimizer.decay_epoch,
            cosine=options.optimizer.schedule == "cosine",
            warmup=options.optimizer.warmup,
        )
        self.progress = Progress()
        self.pace = Pace(options.run.epoch, len(data.train_loader), options.validation.val_epoch, self.precision.device)
        self.images = set(record.images)
        self.pending: list[Pending] = []
        self.saved_at = time.monotonic()
        self.stop = StopSignal()
        steps = options.run.epoch * len(data.train_loader)
        several = distributed.processes() > 1
        compiles = worth_compiling(options.compute.compile, self.precision.device, steps, shares_statistics=several)
        compiles = compiles and not self.precision.apex
        self.shared = distributed.share_gradients(self.loss)
        self.forward = Compiled(self.shared, options.compute.kept_activations) if compiles else self.shared
        on_gpu = self.precision.device.type == "cuda" and not self.precision.apex
        records = options.compute.cuda_graphs and on_gpu and not several and not compiles
        # For a batch that is not split into micro-batches. `self.add_gradients` in its place would tie this object, the
        # loaders and their workers in a cycle.
        self.recorded = Recorded(self.add_gradients, self.loss) if records else None

    def position(self) -> str:
        """Describe the device, the number format, the processes and the next epoch."""
        processes = f", {distributed.processes()} processes" if distributed.processes() > 1 else ""
        epoch = f"epoch {self.progress.epoch + 1} of {self.schedule.epochs}"
        return f"{self.precision.device}, {precision_name(self.precision.name)}{processes}: {epoch}"

    def outcome(self) -> str:
        """Describe the result of a finished run."""
        kept = ", last weights kept" if self.options.validation.keep == "last" else ""
        return f"best val F1 {percent(self.progress.best)}% in epoch {self.progress.best_epoch}{kept}"

    # --- the loop --------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train to the last epoch.

        Raises Interrupted after a signal to stop, and UserError for a loss, a weight or a probability that is not
        finite.
        """
        with self.stop:
            for network in self.average.networks:
                distributed.share_weights(network)
            if distributed.processes() > 1:
                self.rehearse()
            if self.progress.steps == 0:
                self.save_state()
            while self.progress.epoch < self.schedule.epochs:
                self.run_epoch()

    def rehearse(self) -> None:
        """Run one backward pass that changes nothing, before the first step of several processes.

        DistributedDataParallel learns from its first backward pass in which order gradients are ready, and regroups
        them into buckets. This changes the last bits of the sum of three or more processes. If it happened in
        the first step, a continued run would not continue exactly.
        """
        images = next(self.loss.parameters()).new_zeros(2, self.template.config.in_channels, 32, 32)
        self.loss.eval()
        with distributed.exchange_gradients(self.shared, last=True):
            found, _ = self.shared(images, images, images[:, :1])
            torch.autograd.backward(found.total)
        self.optimizer.zero_grad(set_to_none=True)

    def run_epoch(self) -> None:
        """Train for one epoch, validate if it is due, and write the files of the epoch."""
        at = self.progress
        began, pairs_before = time.monotonic(), at.pairs
        lr = self.schedule.at(at.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("factor", 1.0)  # states of earlier versions have no factor
        self.train_epoch(lr)
        seconds = time.monotonic() - began
        row: dict[str, Any] = {
            "epoch": at.epoch + 1,
            "step": at.steps,
            "lr": lr,
            **{name: total / at.pairs for name, total in zip(LOSS_NAMES, at.sums, strict=True)},
            "seconds": round(seconds, 3),
            "pairs_per_second": round((at.pairs - pairs_before) / seconds, 3),
        }
        self.pace.report(row, at.steps)
        last = at.epoch + 1 == self.schedule.epochs
        if last or (at.epoch + 1) % self.options.validation.val_epoch == 0:
            with self.pace.validation():
                row["val"] = self.validate()
        self.run.scalars({"train/pairs_per_second": row["pairs_per_second"]}, at.steps)
        save_freq = self.options.run.save_freq
        if save_freq and (at.epoch + 1) % save_freq == 0:
            self.keep(self.run.folder / f"{self.run.name}_epoch{at.epoch + 1}.pth", row.get("val", {}))
        at.epoch, at.step, at.sums, at.pairs = at.epoch + 1, 0, [0.0] * len(LOSS_NAMES), 0
        self.run.epoch_done(row)
        if last or self.agreed()[1]:
            self.save_state()

    def train_epoch(self, lr: float) -> None:
        """Take the remaining steps of the current epoch."""
        at, loader = self.progress, self.data.train_loader
        self.loss.train()
        with self.bar(f"epoch {at.epoch + 1}/{self.schedule.epochs}", len(loader), at.step) as bar:
            for batch in loader.epoch(at.epoch, at.step):
                self.take_step(batch, loader.order.share(at.step))
                at.step, at.steps = at.step + 1, at.steps + 1
                bar.update()
                if at.steps % LOG_EVERY == 0 or at.step == len(loader):
                    loss = self.read_losses()
                    pairs = (bar.format_dict["rate"] or 0) * loader.order.samples / len(loader)
                    bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.2e}, {pairs:.1f} pairs/s")
                    self.run.scalars({"train/lr": lr}, at.steps)
                    self.pace.measure(at.epoch, at.steps)
                stop, save = self.agreed()
                if stop:
                    self.interrupt(stop)
                # Not after the last step: a run that is killed after validation would validate and log again.
                if save and at.step < len(loader):
                    self.save_state()

    def take_step(self, batch: Batch, share: BatchShare) -> None:
        """Take one step by the gradient of the mean loss over all processes; `batch` is this process's share."""
        device, losses = self.precision.device, []
        torch.manual_seed(step_seed(self.options.run.seed, self.progress.steps, distributed.rank()))
        for number, (part, weight) in enumerate(weighted_parts(batch, share), start=1):
            before, after, mask = (tensor.to(device, non_blocking=True) for tensor in part)
            with distributed.exchange_gradients(self.shared, last=number == share.parts):
                # The processes average their gradients, and the sum is needed.
                scale = weight * distributed.processes()
                if scale == 1 and self.recorded is not None:
                    found = self.recorded(before, after, mask)
                else:
                    found = self.add_gradients(before, after, mask, scale)
            losses.append(weight * found)
        self.precision.step(self.optimizer)
        self.average.update(self.progress.steps + 1)
        self.pending.append(Pending(batch.names, torch.stack(losses).sum(0), share.pairs))
        self.images.update(image for pair in batch.hashes for image in pair)

    def add_gradients(self, before: Tensor, after: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        """Add the gradients of `scale` times the loss to those of the network; return the losses, not scaled."""
        before, after = (self.template.normalise(images) for images in (before, after))
        with self.precision.autocast():
            found, _ = self.forward(before, after, mask.float())
        self.precision.backward(scale * found.total, self.optimizer)
        return torch.stack(found).detach()

    def agreed(self) -> tuple[int, bool]:
        """Agree with the other processes on the signal to stop, 0 if there is none, and on whether a save is due."""
        old = time.monotonic() - self.saved_at >= 60 * self.options.run.save_minutes
        stop, save = distributed.largest([self.stop.number, old])
        return stop, bool(save)

    def bar(self, name: str, total: int, done: int = 0) -> tqdm[Any]:
        """Make a progress bar; it is shown by the process that writes."""
        return tqdm(total=total, initial=done, desc=name, leave=False, disable=not self.run.writes)

    def read_losses(self) -> float:
        """Add up the losses of the pending steps; return the mean. Raises UserError if one is not finite."""
        at = self.progress
        if self.precision.lost():
            raise UserError(
                f"fp16 has no range left for the gradients in epoch {at.epoch + 1}: the last steps changed nothing; "
                "use --amp bf16 or off, or lower --lr"
            )
        own = torch.stack([step.losses for step in self.pending]).cpu().double()
        values = distributed.sum_over_processes(own.clone()).tolist()
        for step, mine, row in zip(self.pending, own, values, strict=True):
            if not all(map(math.isfinite, row)):
                found = distributed.gather([] if bool(mine.isfinite().all()) else step.names)
                broken = sorted({name for some in found for name in some})
                raise UserError(
                    f"the loss is not finite ({row[0]}) in epoch {at.epoch + 1} on the pairs "
                    f"{list_names(broken, len(broken))}; the last good state is {self.run.state_path}; "
                    "check these files, lower --lr, or use --amp off"
                )
            at.sums = [total + value * step.pairs for total, value in zip(at.sums, row, strict=True)]
            at.pairs += step.pairs
        means = [float(np.mean(column)) for column in zip(*values, strict=True)]
        self.run.scalars({f"train/{name}": mean for name, mean in zip(LOSS_NAMES, means, strict=True)}, at.steps)
        self.pending.clear()
        return means[0]

    def validate(self) -> dict[str, float | None]:
        """Score val and return the scores. Keep the best weights or, with --keep last, those of every validation."""
        at, found = self.progress, self.score_val()
        values, scores = found.counts.scores(), found.counts.scores_or_none()
        self.run.scalars({f"val/{name}": 100 * value for name, value in values.items()}, at.steps)
        text = ", ".join(f"{name} {percent(value)}" for name, value in scores.items())
        log.info("epoch %d/%d, val in percent: %s", at.epoch + 1, self.schedule.epochs, text)
        if found.classes is not None and self.template.classes is not None:
            scores |= report_classes(found.classes, self.template.classes, self.run, at.steps)
        if found.seen and at.best_epoch == 0:
            names = list_names(found.seen)
            log.warning("val is no independent test: %d of its pairs were trained on: %s", len(found.seen), names)
        f1 = 0.0 if math.isnan(found.counts.f1) else found.counts.f1
        is_best = f1 > at.best
        if is_best:
            at.best, at.best_epoch = f1, at.epoch + 1
        if is_best or self.options.validation.keep == "last":  # the last ones replace all others
            self.keep(self.run.best_path, scores, found.curve.best_threshold())
            self.run.pictures(found.panels, at.steps)
        return scores

    def score_val(self) -> Validation:
        """Score val, ready to stop after each batch. Raises UserError if a weight or a probability is not finite."""
        self.bring_together()
        self.check_weights()
        with self.bar("validation", len(self.data.val_loader)) as bar:

            def after_batch() -> None:
                bar.update()
                if stop := self.agreed()[0]:
                    self.interrupt(stop)

            try:
                return validate(
                    self.average.network,
                    self.data.val_loader,
                    self.template,
                    device=self.precision.device,
                    dtype=self.precision.dtype or DTYPES["off"],
                    trained=self.template.trained_on().union(self.images, self.record.sources),
                    draw=self.run.writes,
                    after_batch=after_batch,
                )
            except NotFiniteError as error:
                raise UserError(
                    f"probabilities are not finite after step {self.progress.steps} on the val pairs "
                    f"{list_names(error.names)}; the last good state is {self.run.state_path}; "
                    "lower --lr, or use --amp off"
                ) from error

    # --- saving ----------------------------------------------------------------------------------------------------

    def bring_together(self) -> None:
        """Average the running statistics of all processes, and unite the images that they have seen."""
        for network in self.average.networks:
            distributed.average_statistics(network)
        self.images = set().union(*distributed.gather(self.images))

    def keep(self, path: Path, scores: dict[str, float | None], val_threshold: float | None = None) -> None:
        """Write the weights at the end of this epoch, with their history. Raises UserError if one is not finite."""
        self.bring_together()
        self.check_weights()
        if self.run.writes:
            record = replace(self.record, images=sorted(self.images), scores=scores, epoch=self.progress.epoch + 1)
            weights, lineage = self.average.network.state_dict(), [*self.template.lineage, record]
            replace(self.template, weights=weights, lineage=lineage, val_threshold=val_threshold).save(path)

    def save_state(self) -> None:
        """Write everything that the run needs to continue. Raises UserError if a weight or a loss is not finite."""
        if self.pending:
            self.read_losses()
        self.bring_together()
        self.check_weights()
        state = RunState(
            options=to_flat(self.options),
            data=self.data.digest(),
            weights=self.loss.network.state_dict(),
            average=self.average.state_dict(),
            optimizer=self.optimizer.state_dict(),
            precision_name=self.precision.name,
            precision=self.precision.state_dict(),
            progress=self.progress,
            lineage=self.template.lineage,
            images=sorted(self.images),
            mean=self.template.mean,
            std=self.template.std,
            threshold=self.template.threshold,
            contents=self.data.contents,
            resolution=self.template.resolution,
            bands=self.template.bands,
            classes=self.template.classes,
        )
        if self.run.writes:
            state.save(self.run.state_path)
        distributed.wait()  # if a process ended before the file is written, the writing one would end too
        self.saved_at = time.monotonic()

    def check_weights(self) -> None:
        """Raise UserError if a weight is not finite: a finite loss says nothing about the weights after its step."""
        weights = {n: w for n, w in self.loss.network.state_dict().items() if w.is_floating_point()}
        finite = torch.stack([weight.isfinite().all() for weight in weights.values()]).tolist()
        broken = [name for name, good in zip(weights, finite, strict=True) if not good]
        if broken:
            raise UserError(
                f"weights are not finite after step {self.progress.steps}: {list_names(broken)}; "
                f"the last good state is {self.run.state_path}; lower --lr, or use --amp off"
            )

    def load_state(self, state: RunState) -> None:
        """Continue from a saved state. Raises UserError if it belongs to other pairs or does not fit."""
        self.data.require_same(state, self.run.state_path)
        try:
            self.loss.network.load_state_dict(state.weights)
            self.average.load_state_dict(state.average)
            for group in state.optimizer["param_groups"]:
                group["fused"] = self.optimizer.defaults["fused"]  # that of this machine, not of the saved run
            self.optimizer.load_state_dict(state.optimizer)
            self.precision.load_state_dict(state.precision)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise unfit_state_error(self.run.state_path, error) from error
        self.progress = state.progress
        self.template = replace(
            self.template,
            lineage=state.lineage,
            mean=state.mean,
            std=state.std,
            threshold=state.threshold,
            resolution=state.resolution,
            bands=state.bands,
            classes=state.classes,
        )
        self.images = set(state.images)

    def interrupt(self, number: int) -> None:
        """Save the state and raise Interrupted with the command that continues it; `number` is that of the signal."""
        self.save_state()
        command = ["python", "train.py", "--continue_run", str(self.run.folder), "--best_name", self.run.name]
        validated = self.progress.best_epoch > 0
        weights = f"weights so far: {self.run.best_path}" if validated else "no weights yet: no validation has run"
        raise Interrupted(
            128 + number,
            f"stopped in epoch {self.progress.epoch + 1} after step {self.progress.step}; {weights}; continue with: "
            f"{shlex.join(command)}",
        )
