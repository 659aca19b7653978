"""Training and prediction loops.

A run is a function of its options alone: the order of an epoch and every augmentation follow from (seed, epoch,
sample), dropout and refinement points from (seed, step, process). So its state needs no random states: weights, their
average, optimizer, loss scaler, position, best score and sums of the epoch are all, and a run that goes on from them
ends, on the CPU, with the same bits as one that was never interrupted.

Many processes (torchrun's) work through each batch together and take the step that one would take; only batch norms, on
the CPU, the draws of dropout and points, and a Dice loss, which is of each part's pixels, know of them. All do the same
exchanges in the same order, so whatever decides on one (a stop, a save, a score, a loss that is not finite) is agreed
upon first. Process 0 writes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from change.checkpoint import Checkpoint, PassRecord, save_tensors
from change.common import distributed
from change.common.errors import UserError, listed
from change.common.pictures import panel
from change.data.loaders import BatchShare, TrainLoader, or_raise
from change.data.samples import Batch, seen_in_training
from change.evaluation.metrics import BINS, Curve, histogram
from change.prediction.compiling import Compiled
from change.prediction.predictor import predictor
from change.prediction.threshold import changed_pixels
from change.training.average import WeightAverage
from change.training.precision import Precision
from change.training.run_folder import STATE_FORMAT, Run
from change.training.schedule import Interrupted, Progress, Schedule, StopSignal, step_seed
from models.losses import TrainingLoss
from models.network import PRXChange
from models.padding import normalise

log = logging.getLogger(__name__)

LOG_EVERY = 10  # steps between two looks at the losses, each of which waits for the device
LOSSES = ("loss", "loss_classification", "loss_refinement")  # what `Losses` holds, as it is logged
PANELS, PANEL_SIDE = 4, 256  # val pairs shown in TensorBoard, and how large


def parameter_groups(network: nn.Module, decay: float, norms_too: bool) -> list[dict[str, Any]]:
    """Parameters for an optimizer: norms and biases, all vectors, without weight decay unless `norms_too`."""
    parameters = list(network.parameters())
    if norms_too:
        return [{"params": parameters, "weight_decay": decay}]
    vectors, others = ([p for p in parameters if (p.ndim < 2) == small] for small in (True, False))
    return [{"params": others, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


@dataclass
class Training:
    """One pass over its epochs.

    `template`: a checkpoint of this network but for its weights, with the lineage of the passes before; `record`: what
    its lineage will say of this pass.
    """

    loss: TrainingLoss
    average: WeightAverage[PRXChange]
    optimizer: torch.optim.Optimizer
    precision: Precision
    schedule: Schedule
    train: TrainLoader
    val: DataLoader[Batch | UserError]
    run: Run
    template: Checkpoint
    record: PassRecord
    data: str
    seed: int
    val_every: int
    save_every: int
    save_minutes: float
    compiling: bool = False
    kept: float = 1.0
    keep_last: bool = False
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.images = set(self.record.images)
        self.pending: list[tuple[list[str], Tensor, int]] = []  # not yet looked at: own names, own losses, all pairs
        self.saved_at = time.monotonic()
        self.stop = StopSignal()
        self.forward = Compiled(self.loss, self.kept) if self.compiling else self.loss

    # --- the loop --------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train to the last epoch. Raises Interrupted when told to stop, UserError for a loss that is not finite."""
        at = self.progress
        for network in self.average.networks:
            distributed.share_weights(network)
        if at.steps == 0:
            self.save_state()
        while at.epoch < self.schedule.epochs:
            began, done = time.monotonic(), at.pairs
            lr = self.schedule.at(at.epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.train_epoch(lr)
            seconds = time.monotonic() - began
            row: dict[str, Any] = {
                "epoch": at.epoch + 1,
                "step": at.steps,
                "lr": lr,
                **{name: total / at.pairs for name, total in zip(LOSSES, at.sums, strict=True)},
                "seconds": round(seconds, 3),
                "pairs_per_second": round((at.pairs - done) / seconds, 3),
            }
            last = at.epoch + 1 == self.schedule.epochs
            if last or (at.epoch + 1) % self.val_every == 0:
                row["val"] = self.validate()
            self.run.scalars({"train/pairs_per_second": row["pairs_per_second"]}, at.steps)
            if self.save_every and (at.epoch + 1) % self.save_every == 0:
                self.keep(self.run.folder / f"{self.run.name}_epoch{at.epoch + 1}.pth", row.get("val", {}))
            at.epoch, at.step, at.sums, at.pairs = at.epoch + 1, 0, [0.0, 0.0, 0.0], 0
            self.run.epoch_done(row)
            if last or self.agreed()[1]:
                self.save_state()

    def train_epoch(self, lr: float) -> None:
        """The steps of one epoch that are still to do."""
        at = self.progress
        self.loss.train()
        with self.bar(f"epoch {at.epoch + 1}/{self.schedule.epochs}", len(self.train), at.step) as bar:
            for batch in self.train.epoch(at.epoch, at.step):
                self.take_step(batch, self.train.order.share(at.step))
                at.step, at.steps = at.step + 1, at.steps + 1
                bar.update()
                if at.steps % LOG_EVERY == 0 or at.step == len(self.train):
                    loss = self.look_at_losses()
                    pairs = (bar.format_dict["rate"] or 0) * self.train.order.batch_size
                    bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.2e}, {pairs:.1f} pairs/s")
                    self.run.scalars({"train/lr": lr}, at.steps)
                stop, save = self.agreed()
                if stop:
                    self.interrupt(stop)
                # Not at the end: what validation then writes about this step would be written again on going on.
                if save and at.step < len(self.train):
                    self.save_state()

    def take_step(self, batch: Batch, share: BatchShare) -> None:
        """One step of the optimizer, by the gradient of a whole batch's mean loss: `batch` is this process's share."""
        device, losses = self.precision.device, []
        torch.manual_seed(step_seed(self.seed, self.progress.steps, distributed.rank()))
        for part, weight in weighted_parts(batch, share):
            before, after, mask = (tensor.to(device, non_blocking=True) for tensor in part)
            before, after = (normalise(images, self.template.mean, self.template.std) for images in (before, after))
            with self.precision.autocast():
                found, _ = self.forward(before, after, mask.float())
            self.precision.backward(weight * found.total, self.optimizer)
            losses.append(weight * torch.stack(found).detach())
        distributed.sum_gradients(self.loss.parameters())
        self.precision.step(self.optimizer)
        self.average.update(self.progress.steps + 1)
        self.pending.append((batch.names, torch.stack(losses).sum(0), share.pairs))
        self.images.update(image for pair in batch.hashes for image in pair)

    def agreed(self) -> tuple[int, bool]:
        """A signal to stop by, else 0, and whether the last saved state has grown old, in any of the processes."""
        old = time.monotonic() - self.saved_at >= 60 * self.save_minutes
        stop, save = distributed.largest([self.stop.number, old])
        return stop, bool(save)

    def bar(self, name: str, total: int, done: int = 0) -> tqdm[Any]:
        """A progress bar, on one process's console."""
        return tqdm(total=total, initial=done, desc=name, leave=False, disable=not self.run.writes)

    def look_at_losses(self) -> float:
        """Sum up the losses since the last look and return their mean. Raises UserError if one is not finite."""
        at = self.progress
        if self.precision.lost():
            raise UserError(
                f"fp16 has no range left for the gradients in epoch {at.epoch + 1}: the last steps changed nothing; "
                "use --amp bf16 or off, or lower --lr"
            )
        own = torch.stack([losses for _, losses, _ in self.pending]).cpu().double()
        values = distributed.summed(own.clone()).tolist()
        for (names, _, pairs), mine, row in zip(self.pending, own, values, strict=True):
            if not all(map(math.isfinite, row)):
                found = distributed.gathered([] if bool(mine.isfinite().all()) else names)
                broken = sorted({name for some in found for name in some})
                raise UserError(
                    f"the loss is not finite ({row[0]}) in epoch {at.epoch + 1} on the pairs "
                    f"{listed(broken, len(broken))}; the last good state is {self.run.state_path}; "
                    "look at these files, lower --lr, or use --amp off"
                )
            at.sums = [total + value * pairs for total, value in zip(at.sums, row, strict=True)]
            at.pairs += pairs
        means = [float(np.mean(column)) for column in zip(*values, strict=True)]
        self.run.scalars({f"train/{name}": mean for name, mean in zip(LOSSES, means, strict=True)}, at.steps)
        self.pending.clear()
        return means[0]

    def validate(self) -> dict[str, float | None]:
        """Score val; keep the weights if they are the best so far, or, with `keep_last`, the last ones."""
        at, device = self.progress, self.precision.device
        self.bring_together()
        trained = self.template.trained_on() | self.images
        total = torch.zeros(2, BINS, dtype=torch.int64, device=device)
        predict = predictor(self.average.network, device, self.precision.dtype or torch.float32, self.template)
        panels: dict[str, NDArray[np.uint8]] = {}
        own: list[str] = []
        (rounds,) = distributed.largest([len(self.val)])
        with self.bar("validation", rounds) as bar:
            for batch, _ in zip_longest(or_raise(self.val), range(rounds)):
                if batch is not None:  # else other processes have one more than this
                    probability = predict(batch.before, batch.after)
                    changed = changed_pixels(probability, self.template.threshold, batch.names)
                    total += histogram(probability, batch.mask.to(device) > 0).sum(0)
                    own += seen_in_training(batch, trained)
                    for i in range(min(len(batch.names), PANELS - len(panels)) if self.run.writes else 0):
                        panels[batch.names[i]] = small_panel(batch, changed, i)
                bar.update()
                if stop := self.agreed()[0]:
                    self.interrupt(stop)
        seen = sorted(name for names in distributed.gathered(own) for name in names)
        curve = Curve(distributed.summed(total.cpu()).numpy())
        counts = curve.at(self.template.threshold)
        scores = counts.scores_or_none()
        self.run.scalars({f"val/{name}": value for name, value in counts.scores().items()}, at.steps)
        text = ", ".join(f"{name} {value:.4f}" for name, value in counts.scores().items())
        log.info("epoch %d/%d: %s", at.epoch + 1, self.schedule.epochs, text)
        if seen and at.best_epoch == 0:
            log.warning("val is no independent test: %d of its pairs were trained on: %s", len(seen), listed(seen))
        f1 = 0.0 if math.isnan(counts.f1) else counts.f1
        better = f1 > at.best
        if better:
            at.best, at.best_epoch = f1, at.epoch + 1
        if at.epoch + 1 == self.schedule.epochs if self.keep_last else better:
            self.keep(self.run.best_path, scores, curve.best_threshold())
            self.run.pictures(panels, at.steps)
        return scores

    # --- saving ----------------------------------------------------------------------------------------------------

    def bring_together(self) -> None:
        """What each process has seen of its own: running statistics and images."""
        for network in self.average.networks:
            distributed.average_statistics(network)
        self.images = set().union(*distributed.gathered(self.images))

    def keep(self, path: Path, scores: dict[str, float | None], val_threshold: float | None = None) -> None:
        """Write the weights at the end of this epoch, with their history. Raises UserError where one is not finite."""
        self.bring_together()
        self.check_weights()
        if self.run.writes:
            record = replace(self.record, images=sorted(self.images), scores=scores, epoch=self.progress.epoch + 1)
            weights, lineage = self.average.network.state_dict(), [*self.template.lineage, record]
            replace(self.template, weights=weights, lineage=lineage, val_threshold=val_threshold).save(path)

    def save_state(self) -> None:
        """Write all that the run needs to go on. Raises UserError where a weight or a loss is not finite."""
        if self.pending:
            self.look_at_losses()
        self.bring_together()
        self.check_weights()
        state = {
            "format": STATE_FORMAT,
            "options": self.record.options,
            "data": self.data,
            "weights": self.loss.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision_name": self.precision.name,
            "precision": self.precision.state_dict(),
            "progress": asdict(self.progress),
            "lineage": [asdict(record) for record in self.template.lineage],
            "images": sorted(self.images),
        }
        if self.run.writes:
            save_tensors(state, self.run.state_path)
        distributed.wait()  # the end of another process would end the one that writes
        self.saved_at = time.monotonic()

    def check_weights(self) -> None:
        """Raise UserError where a weight is not finite: a loss is looked at before its step, not after."""
        weights = {n: w for n, w in self.loss.network.state_dict().items() if w.is_floating_point()}
        finite = torch.stack([weight.isfinite().all() for weight in weights.values()]).tolist()
        broken = [name for name, good in zip(weights, finite, strict=True) if not good]
        if broken:
            raise UserError(
                f"weights are not finite after step {self.progress.steps}: {listed(broken)}; the last good state is "
                f"{self.run.state_path}; lower --lr, or use --amp off"
            )

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what `save_state` wrote. Raises UserError where the pairs are not those it was trained on."""
        if state["data"] != self.data:
            raise UserError(
                f"{self.run.state_path} was trained on other pairs than lie in --root now (names or sizes differ); "
                "going on needs the same ones"
            )
        try:
            self.loss.network.load_state_dict(state["weights"])
            self.average.load_state_dict(state.get("average", {}))  # which runs of earlier versions have not got
            for group in state["optimizer"]["param_groups"]:
                group["fused"] = self.optimizer.defaults["fused"]  # as it is here, not where the run began
            self.optimizer.load_state_dict(state["optimizer"])
            self.precision.load_state_dict(state["precision"])
            self.progress = Progress(**state["progress"])
            self.template.lineage = [PassRecord(**record) for record in state["lineage"]]
            self.images = set(state["images"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{self.run.state_path} does not fit this version ({error}): use the one that wrote it"
            ) from error

    def interrupt(self, number: int) -> None:
        """Save, and raise Interrupted, which says how to go on; `number`: the signal's."""
        self.save_state()
        raise Interrupted(
            128 + number,
            f"stopped in epoch {self.progress.epoch + 1} after step {self.progress.step}; go on with: "
            f"python train.py --continue_run {self.run.folder} --best_name {self.run.name}",
        )


def weighted_parts(batch: Batch, share: BatchShare) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor], float]]:
    """Images and masks of a process's share, part by part, each with the weight of its mean loss in the batch's.

    The weights are the parts' shares of the batch's pairs, so that over parts and processes they add up to 1; pairs
    behind this process's own, with which a share is filled up, weigh nothing.
    """
    left = share.own
    for part in zip(*(tensor.tensor_split(share.parts) for tensor in batch[:3]), strict=True):
        own = min(left, len(part[0]))
        left -= own
        yield part, own / share.pairs


def small_panel(batch: Batch, changed: Tensor, index: int) -> NDArray[np.uint8]:
    """A pair's panel for TensorBoard, at most `PANEL_SIDE` pixels high."""
    before, after = (images[index].permute(1, 2, 0).numpy() for images in (batch.before, batch.after))
    picture = panel(before, after, changed[index, 0].cpu().numpy(), batch.mask[index, 0].numpy() > 0)
    scale = min(1.0, PANEL_SIDE / picture.shape[0])
    return np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
