"""Self-training: a teacher labels weak views of unlabelled images, and the student learns them from strong views."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.augment.stream import Batch
from tenfold.config import SelfTrainConfig
from tenfold.errors import NoPseudoLabelsError
from tenfold.losses.mixup import draw, mix_labelled, pseudo_mixup
from tenfold.losses.self_training import align, pseudo_label_loss, update_running
from tenfold.models.heads import Classifier
from tenfold.ranks import all_gather, mean
from tenfold.training.average import Average
from tenfold.training.health import Health
from tenfold.training.objectives import Figures, Objective, logits_of


class SelfTraining(Objective):
    r"""The student learns labelled images, and unlabelled ones by the teacher's guesses of which it is sure.

    .. math:: L = L_x + \lambda L_u

    ``method`` says who the teacher is: ``ema_teacher``, the student's moving average in evaluation mode (Semi-ViT,
    section 3.2); ``fixmatch``, the student itself in training mode (Sohn et al. 2020); ``pseudo_label``, the classifier
    that the student began as, unchanged. Streams: ``labelled`` with a strong view, ``unlabelled`` with a weak and a
    strong one. Partners for mixing are drawn among a rank's own images.
    """

    def __init__(
        self, model: Classifier, labels: Tensor, config: SelfTrainConfig, decay: float = 0.0, *,
        prior: Tensor | None = None, known: Tensor | None = None, health: Health | None = None,
    ) -> None:  # fmt: skip
        """Set up.

        Args:
            model: the student, as it is the teacher.
            labels: class indexes of the labelled split.
            config: of the stage.
            decay: of the moving average that is the result; 0: the student is. ``ema_teacher``'s labels as well.
            prior: class shares (C,) that the guesses are aligned with; None: the labels'.
            known: by number in the unlabelled split, whether an image is of a known class; None: all are.
            health: measures the teacher now and then.
        """
        super().__init__()
        self.model, self.config, self.health, self._over = model, config, health, False
        self.average = Average(model, decay) if decay or config.method == "ema_teacher" else None
        self.first = Average(model, 1.0) if config.method == "pseudo_label" else None
        classes = model.linear.out_features
        shares = torch.bincount(labels, minlength=classes) / len(labels)
        self.register_buffer("dry", torch.zeros((), dtype=torch.long))  # steps in a row without a pseudo-label
        self.register_buffer("confident", torch.zeros(()))  # share of the step's parts so far
        self.dry: Tensor
        self.confident: Tensor
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("prior", shares if prior is None else prior)
        self.register_buffer("running", torch.full((classes,), 1 / classes))
        self.register_buffer("known", known, persistent=False)
        self.labels: Tensor
        self.prior: Tensor
        self.running: Tensor
        self.known: Tensor | None

    def trained(self) -> list[nn.Module]:
        """See :class:`Objective`."""
        return [self.model]

    @property
    def teacher(self) -> nn.Module:
        """What guesses."""
        if self.config.method == "ema_teacher":
            return self._yielded()
        return self.first.model if self.first is not None else self.model

    def result(self) -> nn.Module:
        """Return the network that the training yields: the moving average, or the student where there is none."""
        chosen = self.health.chosen() if self.health is not None else None
        return chosen if chosen is not None else self._yielded()

    def _yielded(self) -> nn.Module:
        return self.average.model if self.average is not None else self.model

    def loss(self, batches: Mapping[str, Batch]) -> tuple[Tensor, Figures]:
        """See :class:`Objective`; labelled and strong views pass the student together."""
        config, labelled, unlabelled = self.config, batches["labelled"], batches["unlabelled"]
        weak, strong = unlabelled.views
        with torch.no_grad():
            guess = F.softmax(logits_of(self.teacher, weak), dim=1)
            torch.clear_autocast_cache()  # before torch 2.10 a student that guesses here would train no kernel below
            known = torch.ones(len(guess), device=guess.device)
            if self.known is not None:
                known = self.known[unlabelled.numbers]
            if config.align != "none":
                seen = all_gather(guess)[all_gather(known) > 0]
                if len(seen):
                    self.running.copy_(update_running(self.running, seen))
                guess = align(guess, self.running, self.prior)
            sure, wanted = guess.max(1)
            sure = sure * known
            if config.pseudo_mixup:
                drawn = draw(strong, config.pseudo_cutmix)
                strong, wanted, sure = pseudo_mixup(strong, guess, drawn, config.label_smoothing, sure)
            images, targets = mix_labelled(
                labelled.views[0], self.labels[labelled.numbers], guess.shape[1], mixup=config.mixup,
                cutmix=config.cutmix, smoothing=config.label_smoothing,
            )  # fmt: skip
        logits = logits_of(self.model, torch.cat([images, strong]))
        told, guessed = logits[: len(images)], logits[len(images) :]
        supervised = F.cross_entropy(told, targets)
        sure = torch.where(sure > 0, sure, -1)  # whatever the threshold
        pseudo, share = pseudo_label_loss(guessed, wanted, sure, config.threshold)
        with torch.no_grad():
            self.confident.add_(mean(share))
            likeliest = wanted.argmax(1) if wanted.ndim > 1 else wanted
            agreement = (guessed.argmax(1) == likeliest).float().mean()
        figures = {"supervised_loss": supervised, "unlabelled_loss": pseudo, "confident_share": share,
                   "agreement": agreement}  # fmt: skip
        return supervised + config.unlabelled_weight * pseudo, {k: value.detach() for k, value in figures.items()}

    def after_step(self) -> None:
        """See :class:`Objective`; counts the step where no part of it had a pseudo-label."""
        if self.average is not None:
            self.average.update(self.model)
        self.dry.copy_(torch.where(self.confident > 0, 0, self.dry + 1))
        self.confident.zero_()

    def observe(self, step: int, steps: int, *, point: bool) -> dict[str, float]:
        """See :class:`Objective`.

        Raises:
            NoPseudoLabelsError: no pseudo-label counted for longer than the patience.
        """
        if point and int(self.dry) >= self.config.patience:
            raise NoPseudoLabelsError(
                f"no pseudo-label reached the threshold {self.config.threshold} in the last {int(self.dry)} of {step} "
                "steps: the teacher is sure of nothing. Lower self_train.threshold, fine-tune longer, or leave "
                "self-training out (self_train.enabled=false)"
            )
        if self.health is None or not self.health.due(step, steps):
            return {}
        figures = self.health.measure(self._yielded(), step)
        self._over = self.health.harmed()
        return figures

    def concern(self, figures: Mapping[str, float], step: int, steps: int) -> str | None:
        """See :class:`Objective`; tells when no pseudo-label counts."""
        if int(self.dry) < max(1, min(self.config.patience, steps) // 4):
            return None
        return (
            f"no pseudo-label reached the threshold {self.config.threshold} in the last {int(self.dry)} steps; "
            "the labelled images alone train the student"
        )

    def done(self) -> bool:
        """See :class:`Objective`; where self-training harms."""
        return self._over
