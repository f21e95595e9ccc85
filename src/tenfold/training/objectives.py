"""What the stages train: contrastive, supervised, self-training and distillation objectives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.augment.stream import Batch
from tenfold.config import MemoryConfig
from tenfold.losses.distillation import distillation, sharpen, soften
from tenfold.losses.momentum_contrast import momentum_contrast
from tenfold.losses.nt_xent import nt_xent, unit
from tenfold.losses.self_training import align, pseudo_label_loss, update_running
from tenfold.models.heads import Classifier, SimCLRModel
from tenfold.ranks import all_gather
from tenfold.training.average import Average
from tenfold.training.loop import Figures, Objective
from tenfold.training.watch import Watch


class Contrastive(Objective):
    """SimCLR: two views of each image attract each other. Stream ``train`` brings two views.

    With a memory the negatives are a momentum encoder's keys, of this batch and of a queue (SimCLRv2).
    """

    def __init__(
        self, model: SimCLRModel, temperature: float, memory: MemoryConfig | None = None, watch: Watch | None = None
    ) -> None:
        """Set up.

        Args:
            model: encoder and projection head.
            temperature: of the similarities.
            memory: queue and momentum; None: the batch's own views are the negatives.
            watch: measures the features now and then.
        """
        super().__init__()
        self.model, self.temperature, self.watch = model, temperature, watch
        self.momentum: Average | None = None
        self._views: tuple[Tensor, Tensor] | None = None
        if memory is not None:
            self.momentum = Average(model, memory.momentum, training=True)
            width = model.head.width_after(len(model.head.layers))
            queue = unit(torch.randn(memory.size, width, generator=torch.Generator().manual_seed(0)))
            self.register_buffer("queue", queue)
            self.register_buffer("oldest", torch.zeros((), dtype=torch.long))
            self.queue: Tensor
            self.oldest: Tensor

    def trained(self) -> list[nn.Module]:
        """See :class:`Objective`."""
        return [self.model]

    def loss(self, batches: Mapping[str, Batch]) -> tuple[Tensor, Figures]:
        """NT-Xent of the batch; both views pass the network together, so they share its batch statistics."""
        first, second = batches["train"].views
        together = torch.cat([first, second]).contiguous(memory_format=torch.channels_last)
        z = self.model(together)
        keys = None
        if self.momentum is not None:
            with torch.no_grad():
                keys = self.momentum.model(together)
        with torch.autocast(z.device.type, enabled=False):  # similarities over a low temperature need float32
            a, b = z.float().split(len(first))
            self._views = (a.detach(), b.detach())
            if keys is None:
                loss, accuracy = nt_xent(a, b, self.temperature)
                return loss, {"contrast_accuracy": accuracy}
            one, other = keys.float().split(len(first))
            forth = momentum_contrast(a, other, self.queue, self.temperature)
            back = momentum_contrast(b, one, self.queue, self.temperature)
            self._enqueue(all_gather(unit(one)))
            return forth.loss + back.loss, {"contrast_accuracy": (forth.accuracy + back.accuracy) / 2}

    def _enqueue(self, keys: Tensor) -> None:
        keys = keys[: len(self.queue)]
        places = (int(self.oldest) + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue = self.queue.index_copy(0, places, keys)  # the step's graph still holds the old one
        self.oldest = (self.oldest + len(keys)) % len(self.queue)

    def after_step(self) -> None:
        """See :class:`Objective`."""
        if self.momentum is not None:
            self.momentum.update(self.model)

    def observe(self, step: int, steps: int) -> dict[str, float]:
        """See :class:`Objective`."""
        if self.watch is None or self._views is None or not self.watch.due(step, steps):
            return {}
        return self.watch.measure(self.model, *self._views)

    def result(self) -> SimCLRModel:
        """Return the network that the training yields."""
        chosen = self.watch.chosen() if self.watch is not None else None
        return chosen if chosen is not None else self.model


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the model's logits as float32, whatever it computes in: losses need it."""
    logits: Tensor = model(images.contiguous(memory_format=torch.channels_last)).float()
    return logits


class _Averaged(Objective):
    """A classifier with, if ``decay`` is above 0, a moving average that is what the training yields."""

    warm_up = True

    def __init__(self, model: Classifier, decay: float) -> None:
        super().__init__()
        self.model = model
        self.average = Average(model, decay, warm_up=self.warm_up) if decay > 0 else None

    def trained(self) -> list[nn.Module]:
        """See :class:`Objective`."""
        return [self.model]

    def after_step(self) -> None:
        """See :class:`Objective`."""
        if self.average is not None:
            self.average.update(self.model)

    def result(self) -> nn.Module:
        """Return the network that the training yields."""
        return self.average.model if self.average is not None else self.model


class Supervised(_Averaged):
    """Cross-entropy on labelled images. Stream ``labelled`` brings one view."""

    def __init__(self, model: Classifier, labels: Tensor, smoothing: float, decay: float) -> None:
        super().__init__(model, decay)
        self.smoothing = smoothing
        self.register_buffer("labels", labels, persistent=False)
        self.labels: Tensor

    def loss(self, batches: Mapping[str, Batch]) -> tuple[Tensor, Figures]:
        """See :class:`Objective`."""
        batch = batches["labelled"]
        labels = self.labels[batch.numbers]
        logits = _logits(self.model, batch.views[0])
        accuracy = (logits.argmax(1) == labels).float().mean()
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing), {"accuracy": accuracy}


class SelfTraining(_Averaged):
    """EMA-Teacher: the averaged network labels weak views, the student learns them from strong views.

    Streams: ``labelled`` with a strong view, ``unlabelled`` with a weak and a strong one.
    Source: Semi-ViT, section 3.2; distribution alignment after ReMixMatch.
    """

    warm_up = False

    def __init__(
        self, model: Classifier, labels: Tensor, classes: int, threshold: float, weight: float, decay: float, *,
        alignment: bool,
    ) -> None:  # fmt: skip
        super().__init__(model, decay)
        self.threshold, self.weight, self.alignment = threshold, weight, alignment
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("prior", torch.bincount(labels, minlength=classes) / len(labels))
        self.register_buffer("running", torch.full((classes,), 1 / classes))
        self.labels: Tensor
        self.prior: Tensor
        self.running: Tensor

    def loss(self, batches: Mapping[str, Batch]) -> tuple[Tensor, Figures]:
        """See :class:`Objective`; labelled and strong views pass the student together."""
        labelled, unlabelled = batches["labelled"], batches["unlabelled"]
        weak, strong = unlabelled.views
        labels = self.labels[labelled.numbers]
        with torch.no_grad():
            teacher = self.average.model if self.average is not None else self.model
            guess = F.softmax(_logits(teacher, weak), dim=1)
            if self.alignment:
                self.running.copy_(update_running(self.running, guess))
                guess = align(guess, self.running, self.prior)
        logits = _logits(self.model, torch.cat([labelled.views[0], strong]))
        known, unknown = logits[: len(labels)], logits[len(labels) :]
        supervised = F.cross_entropy(known, labels)
        pseudo, share = pseudo_label_loss(unknown, guess, self.threshold)
        agreement = (unknown.argmax(1) == guess.argmax(1)).float().mean()
        figures = {"supervised_loss": supervised, "unlabelled_loss": pseudo, "confident_share": share,
                   "agreement": agreement}  # fmt: skip
        return supervised + self.weight * pseudo, {key: value.detach() for key, value in figures.items()}


class Distillation(_Averaged):
    """The student learns the teacher's soft labels, alone or mixed with true labels (SimCLRv2, eq. 2 and 3).

    Streams: ``unlabelled`` with one view; ``labelled`` with one view where alpha is below 1.
    """

    def __init__(
        self, model: Classifier, teacher: Classifier | None, soft: Tensor, labels: Tensor, temperature: float,
        alpha: float, decay: float,
    ) -> None:  # fmt: skip
        """Set up.

        Args:
            model: the student.
            teacher: live teacher, shown the student's very view in evaluation mode; None: use ``soft``.
            soft: teacher's probabilities (N, C) by sample number.
            labels: class indexes of the labelled split.
            temperature: of teacher and student.
            alpha: weight of distillation; 1 - alpha is the weight of the true labels.
            decay: of the student's moving average; 0: none.
        """
        super().__init__(model, decay)
        self.temperature, self.alpha = temperature, alpha
        # in a list, so that it is no submodule: it never changes and has no place in a checkpoint
        self._teacher = [] if teacher is None else [teacher.requires_grad_(False).eval()]
        self.register_buffer("soft", sharpen(soft, temperature), persistent=False)
        self.register_buffer("labels", labels, persistent=False)
        self.soft: Tensor
        self.labels: Tensor

    def loss(self, batches: Mapping[str, Batch]) -> tuple[Tensor, Figures]:
        """See :class:`Objective`."""
        batch = batches["unlabelled"]
        view = batch.views[0]
        if self._teacher:
            with torch.no_grad():
                targets = soften(_logits(self._teacher[0].to(view.device), view), self.temperature)
        else:
            targets = self.soft[batch.numbers]
        if self.alpha == 1:
            logits = _logits(self.model, view)
            distilled = distillation(logits, targets, self.temperature)
            loss, supervised = distilled, torch.zeros_like(distilled)
        else:
            known = batches["labelled"].views[0]
            both = _logits(self.model, torch.cat([view, known]))
            logits, told = both[: len(view)], both[len(view) :]
            distilled = distillation(logits, targets, self.temperature)
            supervised = F.cross_entropy(told, self.labels[batches["labelled"].numbers])
            loss = self.alpha * distilled + (1 - self.alpha) * supervised
        agreement = (logits.argmax(1) == targets.argmax(1)).float().mean()
        figures = {"distillation_loss": distilled, "supervised_loss": supervised, "agreement": agreement}
        return loss, {key: value.detach() for key, value in figures.items()}
