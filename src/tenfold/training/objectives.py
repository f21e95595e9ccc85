"""What the loop trains: contrastive, masked, supervised and distillation objectives, and what all share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.augment.stream import Batch
from tenfold.config import MemoryConfig
from tenfold.losses.distillation import distillation, sharpen, soften
from tenfold.losses.mae import masked_error
from tenfold.losses.mixup import mix_labelled
from tenfold.losses.momentum_contrast import momentum_contrast
from tenfold.losses.nt_xent import nt_xent, unit
from tenfold.models.heads import Classifier, SimCLRModel
from tenfold.models.saved import Pretrained
from tenfold.ranks import all_gather
from tenfold.training.average import Average
from tenfold.training.watch import Watch, alignment, spread, uniformity

if TYPE_CHECKING:
    from tenfold.models.mae import MaskedAutoencoder

#: Rows whose pairwise distances tell uniformity.
_UNIFORM_ROWS = 1024
#: Below this spread, after this share of the steps, projections count as collapsed.
_COLLAPSED, _SETTLED = 0.1, 0.1

Figures = dict[str, Tensor]


class Objective(nn.Module):
    """What is trained: the networks as submodules, and the loss of a step.

    Everything that the next step depends on is in the module's state, so a checkpoint is its state_dict.
    """

    #: The figure that says how good the network is, among those of :meth:`observe`; None: none does.
    score: str | None = None

    def trained(self) -> list[nn.Module]:
        """Return the networks whose parameters the optimizer changes."""
        raise AssertionError("an objective says what it trains")

    def loss(self, batches: Mapping[str, Batch]) -> tuple[Tensor, Figures]:
        """Return the loss of one batch of every stream, and figures to watch."""
        raise AssertionError("an objective has a loss")

    def forward(self, batches: Mapping[str, Batch]) -> tuple[Tensor, Figures]:
        """Return the loss; what wraps modules for several ranks calls it by this name."""
        return self.loss(batches)

    def after_step(self) -> None:
        """Follow up an update, with a moving average for example."""

    def observe(self, step: int, steps: int, *, point: bool) -> dict[str, float]:
        """Return what is measured after ``step`` of ``steps`` steps; empty where nothing is due.

        Args:
            step: steps done.
            steps: in all.
            point: whether the curves get a point here, so that cheap figures are welcome.
        """
        return {}

    def concern(self, figures: Mapping[str, float], step: int, steps: int) -> str | None:
        """Return what speaks against the figures of a point of the curves, told once a start; None: nothing does."""
        return None

    def done(self) -> bool:
        """Tell whether training ends here, before its last step."""
        return False


class _Pretraining(Objective):
    """A network that is pretrained, and watched where that is asked for."""

    score = "knn_accuracy"

    def __init__(self, model: Pretrained, watch: Watch | None) -> None:
        super().__init__()
        self.model, self.watch = model, watch

    def trained(self) -> list[nn.Module]:
        """See :class:`Objective`."""
        return [self.model]

    def observe(self, step: int, steps: int, *, point: bool) -> dict[str, float]:
        """See :class:`Objective`."""
        due = self.watch is not None and self.watch.due(step, steps)
        return {"knn_accuracy": self.watch.measure(self.model)} if due and self.watch is not None else {}

    def result(self) -> Pretrained:
        """Return the network that the training yields."""
        chosen = self.watch.chosen() if self.watch is not None else None
        return chosen if chosen is not None else self.model


class Masked(_Pretraining):
    """Masked autoencoding: most patches of an image are hidden, and drawn from the others. ``train`` brings one view.

    Source: He et al. 2022, section 3.
    """

    def __init__(
        self, model: MaskedAutoencoder, mask: float, watch: Watch | None = None, *, normalise: bool = True
    ) -> None:
        """Set up.

        Args:
            model: encoder and decoder.
            mask: share of the patches that is hidden.
            watch: measures the features now and then.
            normalise: each patch's pixels before they are compared.
        """
        super().__init__(model, watch)
        self.model: MaskedAutoencoder
        self.mask, self.normalise = mask, normalise

    def loss(self, batches: Mapping[str, Batch]) -> tuple[Tensor, Figures]:
        """See :class:`Objective`; which patches are hidden is drawn by the CPU, whose generator checkpoints hold."""
        from tenfold.models.mae import masking, patches  # timm takes a second to load

        view = batches["train"].views[0]
        images = self.model.encoder.normalised(view)
        wanted = patches(images, self.model.side)
        mask = masking(torch.rand(wanted.shape[:2]).to(view.device), self.mask)
        drawn = self.model(images, mask)
        with torch.autocast(view.device.type, enabled=False):
            return masked_error(wide(drawn), wanted, mask.masked, normalise=self.normalise), {}


class Contrastive(_Pretraining):
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
        super().__init__(model, watch)
        self.model: SimCLRModel
        self.temperature = temperature
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
            a, b = torch.split(wide(z), len(first))
            self._views = (a.detach(), b.detach())
            if keys is None:
                loss, accuracy = nt_xent(a, b, self.temperature)
                return loss, {"contrast_accuracy": accuracy}
            one, other = torch.split(wide(keys), len(first))
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

    def observe(self, step: int, steps: int, *, point: bool) -> dict[str, float]:
        """See :class:`Objective`; alignment, uniformity and spread are those of the last batch on this rank."""
        found = super().observe(step, steps, point=point)
        if self._views is None or not (point or found):
            return found
        a, b = (unit(view) for view in self._views)
        return {"alignment": float(alignment(a, b)), "uniformity": float(uniformity(a[:_UNIFORM_ROWS])),
                "spread": float(spread(a)), **found}  # fmt: skip

    def concern(self, figures: Mapping[str, float], step: int, steps: int) -> str | None:
        """See :class:`Objective`; tells when all images come to the same features."""
        if step < _SETTLED * steps or figures["spread"] >= _COLLAPSED:
            return None
        return (
            f"the features have collapsed: after step {step} of {steps} all images have nearly the same projection "
            f"(spread {figures['spread']:.3f}, of 1 where they fill the sphere). A lower learning rate, a longer "
            "warm-up or a larger batch is the usual cure"
        )


def wide(values: Tensor) -> Tensor:
    """Return float32 at least: losses need it."""
    return values if values.dtype == torch.float64 else values.float()


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the model's logits in float32 at least, whatever it computes in."""
    return wide(model(images.contiguous(memory_format=torch.channels_last)))


class Averaged(Objective):
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


class Supervised(Averaged):
    """Cross-entropy on labelled images, mixed with each other where that is asked for. ``labelled`` brings one view."""

    def __init__(
        self, model: Classifier, labels: Tensor, smoothing: float, decay: float, *, mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(model, decay)
        self.smoothing, self.mixup, self.cutmix = smoothing, mixup, cutmix
        self.register_buffer("labels", labels, persistent=False)
        self.labels: Tensor

    def loss(self, batches: Mapping[str, Batch]) -> tuple[Tensor, Figures]:
        """See :class:`Objective`."""
        batch = batches["labelled"]
        labels = self.labels[batch.numbers]
        if self.mixup or self.cutmix:
            images, targets = mix_labelled(
                batch.views[0], labels, self.model.linear.out_features, mixup=self.mixup, cutmix=self.cutmix,
                smoothing=self.smoothing,
            )  # fmt: skip
            logits = logits_of(self.model, images)
            loss, labels = F.cross_entropy(logits, targets), targets.argmax(1)
        else:
            logits = logits_of(self.model, batch.views[0])
            loss = F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        return loss, {"accuracy": (logits.argmax(1) == labels).float().mean()}


class Distillation(Averaged):
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
                targets = soften(logits_of(self._teacher[0].to(view.device), view), self.temperature)
        else:
            targets = self.soft[batch.numbers]
        if self.alpha == 1:
            logits = logits_of(self.model, view)
            distilled = distillation(logits, targets, self.temperature)
            loss, supervised = distilled, torch.zeros_like(distilled)
        else:
            known = batches["labelled"].views[0]
            both = logits_of(self.model, torch.cat([view, known]))
            logits, told = both[: len(view)], both[len(view) :]
            distilled = distillation(logits, targets, self.temperature)
            supervised = F.cross_entropy(told, self.labels[batches["labelled"].numbers])
            loss = self.alpha * distilled + (1 - self.alpha) * supervised
        agreement = (logits.argmax(1) == targets.argmax(1)).float().mean()
        figures = {"distillation_loss": distilled, "supervised_loss": supervised, "agreement": agreement}
        return loss, {key: value.detach() for key, value in figures.items()}
