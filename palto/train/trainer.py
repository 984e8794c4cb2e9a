"""Trainer: the loop over epochs and batches, and all that people expect around it."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from palto.compiler import CompiledFunction, Explanation, compile
from palto.compiler.executor import Executor, LostProcessError
from palto.compiler.executors import chosen
from palto.data.loader import DataLoader
from palto.nn import module as modules
from palto.nn.module import Module
from palto.optim.clipping import check_gradients, clip_grad_norm_
from palto.optim.optimizer import Optimizer
from palto.tensor import Tensor, random
from palto.tensor import functions as F
from palto.tensor.dtypes import FLOATING
from palto.tensor.graph import check, no_grad
from palto.train.checkpoint import Checkpoint, Checkpoints
from palto.train.metrics import Evaluation, Task

_NOT_FINITE = "the loss is not finite"


class TrainingStopped(RuntimeError):
    """Training cannot go on; the model holds the weights of before the step that failed."""


@dataclass
class _Progress:
    """Where a run is."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    epoch_loss: float = 0.0
    epoch_batches: int = 0
    best: float | None = None
    best_epoch: int = 0


class Trainer:
    """Trains a model, watches over it, and can stop and go on at any batch.

    The whole step (augmentation, forward, backprop, clipping, optimiser) is one compiled function.

    Args:
        model: what is trained.
        optimizer: how it moves.
        loss: from (outputs, targets) to one number; with ``reduction="none"``, to one for each
            example.
        task: how answers are measured; see :mod:`palto.train.metrics`.
        augment: from (inputs, targets) to changed ones, in every training step.
        clip_norm: the largest norm of the gradients.
        folder: where checkpoints go; None keeps none.
        save_every: seconds between checkpoints within an epoch; there is one after each epoch.
        patience: stop early after so many epochs without a better measure.
        show: print progress.
        executor: who runs the step; see :func:`palto.compile`.
        devices: with the executor ``"xla"``, on how many devices (of each process, where several
            were brought together) the step runs. They share every batch, whose size is a multiple
            of their number; each process loads its own part, and the first one writes checkpoints.

    Raises:
        ValueError: there is no such executor, or it has no devices to choose from.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loss: Callable[..., Tensor],
        task: Task,
        *,
        augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        clip_norm: float | None = None,
        folder: str | os.PathLike[str] | None = None,
        save_every: float = 300.0,
        patience: int | None = None,
        show: bool = True,
        executor: str | Executor | None = None,
        devices: int | None = None,
    ) -> None:
        self.executor = chosen(executor, devices=devices, every_process=True)
        is_first = self.executor.rank == 0
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.task = task
        self.patience = patience
        self.save_every = save_every
        self.show = show and is_first
        #: One entry for each epoch so far: epoch, step, seconds, losses and measures.
        self.history: list[dict[str, float]] = []
        self.checkpoints = None if folder is None else Checkpoints(folder, writes=is_first)
        #: What happened on the way: resumptions, early stopping, saves that failed.
        self.notes: list[str] = []
        self._at = _Progress()
        self._stop_asked = False
        self._augment = augment
        self._step = _training_step(model, optimizer, loss, augment, clip_norm, self.executor)
        self._answer = _answer(model, loss, self.executor)

    # Training

    def fit(
        self, train: DataLoader, validation: DataLoader | None = None, *, epochs: int
    ) -> list[dict[str, float]]:
        """Train until `epochs` epochs are done, counting those of earlier calls.

        Ctrl-C (or a polite kill) ends the batch, saves a checkpoint and returns.

        Args:
            train: batches of (inputs, targets).
            validation: batches to measure on after each epoch.
            epochs: when to end.

        Returns:
            The history: for each epoch its losses and measures.

        Raises:
            TrainingStopped: a loss or a gradient is not finite; it names the layer. Or another
                process of the run has been lost.
            ValueError: the devices or processes cannot share a batch evenly, or the processes do
                not begin with the same weights at the same step.
        """
        self._stop_asked = False
        if self._at.epoch >= epochs:
            self._say(f"the run is over: all {epochs} epochs are done")
        try:
            self._meet(train)
            with _polite_signals(self._ask_to_stop):
                while self._at.epoch < epochs and not self._stop_asked:
                    self._epoch(train, epochs)
                    if self._stop_asked:
                        break
                    entry = self._close_epoch(train, validation)
                    if self._should_stop_early(entry):
                        break
        except LostProcessError as error:
            raise TrainingStopped(
                f"training stopped after step {self._at.step}: {error}"
            ) from error
        if self._stop_asked:
            self._save(train)
        return self.history

    def _meet(self, train: DataLoader) -> None:
        """See to it that devices and processes can work on one batch, and begin alike."""
        executor = self.executor
        if train.batch_size % executor.parts:
            raise ValueError(
                f"{executor.parts} devices share every batch, so batch_size is a multiple of "
                f"that; got {train.batch_size}"
            )
        train.share(executor.rank, executor.processes)
        if executor.processes > 1:
            mark = zlib.crc32(np.int64(self._at.step).tobytes())
            for cell in self.model.state_dict().values():
                mark = zlib.crc32(np.ascontiguousarray(cell.array()).tobytes(), mark)
            if len(set(executor.gathered(mark))) > 1:
                raise ValueError(
                    "the processes do not begin alike: each must set the same seed before it makes "
                    "the model, and find the same checkpoints, in a folder that all of them share"
                )

    @property
    def was_interrupted(self) -> bool:
        """Whether the last `fit` ended because somebody asked it to."""
        return self._stop_asked

    def _ask_to_stop(self) -> None:
        self._stop_asked = True

    def _epoch(self, train: DataLoader, epochs: int) -> None:
        at, executor = self._at, self.executor
        last_save = started = time.monotonic()
        seconds_before = at.seconds
        with self._bar(at.epoch, epochs, train) as advance:
            for inputs, targets in train:
                loss = self._take_step(inputs, targets)
                at.step += 1
                at.epoch_loss += loss
                at.epoch_batches += 1
                at.seconds = seconds_before + time.monotonic() - started
                advance(len(inputs) * executor.processes, at.epoch_loss / at.epoch_batches)
                self._stop_asked = any(executor.gathered(self._stop_asked))
                if self._stop_asked:
                    return
                if time.monotonic() - last_save > self.save_every:
                    self._save(train)
                    last_save = time.monotonic()

    def _take_step(self, inputs: Tensor, targets: Tensor) -> float:
        try:
            whole = self.executor.whole
            return float(self._step(whole(inputs), whole(targets)))
        except FloatingPointError as error:
            where = self._first_not_finite(inputs, targets)
            raise TrainingStopped(
                f"training stopped at step {self._at.step + 1} (epoch {self._at.epoch + 1}): "
                f"{error}. {where} The weights are those of before this step. Try a lower learning "
                "rate, clip the gradients (clip_norm), or look at the data of this batch"
            ) from error

    def _first_not_finite(self, inputs: Tensor, targets: Tensor) -> str:
        """Run the step once more, slowly, to find the layer where numbers stop being finite."""
        if inputs.dtype in FLOATING and not np.isfinite(inputs.array()).all():
            return "The inputs themselves hold numbers that are not finite."
        names = {id(module): name for name, module in self.model.named_modules()}
        found: list[str] = []

        def watch(module: Module, output: Any) -> None:
            finite = not isinstance(output, Tensor) or output.dtype not in FLOATING
            if not found and not finite and not np.isfinite(output.array()).all():
                name = names.get(id(module)) or "the model"
                found.append(f"{name} ({type(module).__name__})")

        state, buffers = random.default_generator.state.read(), self.model.state_dict()
        modules.observers.append(_Watch(watch))
        try:
            if self._augment is not None:
                inputs, targets = self._augment(inputs, targets)
            loss = F.mean(self.loss(self.model(inputs), targets))
            if found:
                return f"The first layer whose output is not finite is {found[0]}."
            if not np.isfinite(loss.array()).all():
                return "All layers' outputs are finite; the loss itself is not."
            loss.backward()
            bad = [
                name
                for name, p in self.model.named_parameters()
                if p.grad is not None and not np.isfinite(p.grad.array()).all()
            ]
            return f"The gradient is not finite at {', '.join(bad[:5])}." if bad else ""
        finally:
            modules.observers.pop()
            self.optimizer.zero_grad()
            random.default_generator.state.assign(state)
            self.model.load_state_dict(buffers)

    def _close_epoch(self, train: DataLoader, validation: DataLoader | None) -> dict[str, float]:
        at = self._at
        entry = {
            "epoch": at.epoch + 1,
            "step": at.step,
            "seconds": at.seconds,
            "train_loss": at.epoch_loss / max(at.epoch_batches, 1),
        }
        rate = self.optimizer.groups[0].lr
        if rate.ndim == 0:
            entry["lr"] = float(rate)
        if validation is not None:
            measured = self.evaluate(validation)
            for name, value in measured.measures.items():
                entry["validation_loss" if name == "loss" else name] = value
        self.history.append(entry)
        at.epoch += 1
        at.epoch_loss, at.epoch_batches = 0.0, 0
        is_best = self._is_best(entry)
        if is_best:
            at.best, at.best_epoch = self._score(entry), at.epoch
        self._say(_line(entry) + ("  best so far" if is_best and at.epoch > 1 else ""))
        self._save(train, is_best=is_best)
        return entry

    def _score(self, entry: dict[str, float]) -> float:
        name, _ = self.task.best
        for candidate in (name, f"validation_{name}", "train_loss"):
            if candidate in entry:
                return entry[candidate]
        return math.nan

    def _is_best(self, entry: dict[str, float]) -> bool:
        score, best = self._score(entry), self._at.best
        if math.isnan(score):
            return False
        more_is_better = self.task.best[1] and self.task.best[0] in entry
        return best is None or (score > best if more_is_better else score < best)

    def _should_stop_early(self, entry: dict[str, float]) -> bool:
        waited = self._at.epoch - self._at.best_epoch
        if self.patience is None or waited < self.patience:
            return False
        self._note(
            f"stopped early after epoch {self._at.epoch}: no better {self.task.best[0]} for "
            f"{waited} epochs"
        )
        return True

    # Measuring

    def explain(self, inputs: Tensor, targets: Tensor, *, training: bool = True) -> Explanation:
        """Say what the step of training, or of evaluation, does on a batch, and how fast.

        Weights and everything else stay as they are.
        """
        if training:
            return self._step.explain(inputs, targets)
        with self._inference():
            return self._answer.explain(inputs, targets)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        before = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with no_grad():
                yield
        finally:
            for module, training in before:
                module.training = training

    def evaluate(self, batches: DataLoader) -> Evaluation:
        """Measure the model, as in inference, on batches of (inputs, targets)."""
        count = self.task.start()
        with self._inference():
            for inputs, targets in batches:
                outputs, losses = self._answer(inputs, targets)
                count.update(outputs.array(), targets.array(), losses.array())
        result: Evaluation = count.result()
        return result

    # Saving and going on

    def _save(self, train: DataLoader, *, is_best: bool = False) -> None:
        if self.checkpoints is None or self.executor.rank:
            return
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": {"state": random.default_generator.state.read()},
        }
        state = {
            "progress": vars(self._at),
            "history": self.history,
            "notes": self.notes,
            "loader": train.state_dict(),
        }
        try:
            self.checkpoints.save(tensors, state, is_best=is_best)
        except OSError as error:
            self._note(f"the checkpoint after step {self._at.step} could not be saved: {error}")

    def resume(self, train: DataLoader) -> bool:
        """Go back to the newest checkpoint, the loader too.

        Returns:
            Whether there was one.

        Raises:
            ValueError: it is of another model, optimiser or loader; what differs is listed.
        """
        checkpoint = None if self.checkpoints is None else self.checkpoints.newest()
        if checkpoint is None:
            return False
        self.load(checkpoint)
        state = checkpoint.state
        train.load_state_dict(state["loader"])
        self._at = at = _Progress(**state["progress"])
        if state["loader"]["batch"] and not at.epoch_batches:
            train.set_epoch(train.epoch + 1)  # it was saved after the end of an epoch
        self.history = list(state["history"])
        self.notes = list(state["notes"])
        self._note(f"resumed after step {at.step} (epoch {at.epoch + bool(at.epoch_batches)})")
        return True

    def load(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint's tensors: the model's, the optimiser's and the random state.

        Raises:
            ValueError: it is of another model or optimiser; what differs is listed.
        """
        try:
            self.model.load_state_dict(checkpoint.tensors["model"])
            self.optimizer.load_state_dict(checkpoint.tensors["optimizer"])
        except ValueError as error:
            raise ValueError(f"{checkpoint.folder} does not fit: {error}") from None
        random.default_generator.state.assign(checkpoint.tensors["random"]["state"])

    # Talking

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self._say(text)

    def _say(self, text: str) -> None:
        if self.show:
            print(text, flush=True)

    @contextmanager
    def _bar(
        self, epoch: int, epochs: int, train: DataLoader
    ) -> Iterator[Callable[[int, float], None]]:
        if not (self.show and sys.stdout.isatty()):
            yield lambda count, loss: None
            return
        from rich import progress

        columns = (
            progress.TextColumn("epoch {task.fields[epoch]}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]:,.0f}/s"),
            progress.TextColumn("loss {task.fields[loss]:.4f}"),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, transient=True) as bar:
            task = bar.add_task(
                "", total=len(train), completed=self._at.epoch_batches,
                epoch=f"{epoch + 1}/{epochs}", rate=0.0, loss=math.nan,
            )  # fmt: skip
            started, seen = time.monotonic(), 0

            def advance(count: int, loss: float) -> None:
                nonlocal seen
                seen += count
                rate = seen / max(time.monotonic() - started, 1e-9)
                bar.update(task, advance=1, rate=rate, loss=loss)

            yield advance


def _training_step(
    model: Module,
    optimizer: Optimizer,
    loss_function: Callable[..., Tensor],
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None,
    clip_norm: float | None,
    executor: Executor,
) -> CompiledFunction:
    """The compiled step. It sees nothing of the trainer, whose state changes all the time."""

    @compile(executor=executor)
    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        if augment is not None:
            inputs, targets = augment(inputs, targets)
        loss = loss_function(model(inputs), targets)
        check(F.isfinite(loss), _NOT_FINITE)
        loss.backward()
        if clip_norm is None:
            check_gradients(optimizer)
        else:
            clip_grad_norm_(optimizer, clip_norm)
        optimizer.step()
        return loss

    return step


def _answer(
    model: Module, loss_function: Callable[..., Tensor], executor: Executor
) -> CompiledFunction:
    @compile(executor=executor)
    def answer(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = model(inputs)
        losses = loss_function(outputs, targets, reduction="none")
        return outputs, F.mean(F.reshape(losses, (losses.shape[0], -1)), -1)

    return answer


class _Watch:
    """An observer of modules' calls that looks at their outputs."""

    def __init__(self, look: Callable[[Module, Any], None]) -> None:
        self.leave = look

    def enter(self, module: Module) -> None:
        """Nothing happens before a call."""


def _line(entry: dict[str, float]) -> str:
    parts = [f"epoch {entry['epoch']:.0f}"]
    for name, value in entry.items():
        if name in ("epoch", "step", "seconds", "lr"):
            continue
        shown = (
            f"{value:.2%}" if name in ("accuracy",) or name.startswith("top") else f"{value:.4f}"
        )
        parts.append(f"{name.replace('_', ' ')} {shown}")
    return "  ".join([*parts, f"{entry['seconds']:.0f} s"])


@contextmanager
def _polite_signals(ask: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C or kill asks to stop after the batch; the second one is obeyed at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        ask()
        for other, handler in before.items():
            signal.signal(other, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
