"""The stages, bound to images and pods, and the part that all pipelines have: from a data set to promotion."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kfp import dsl

from tenfold.components.augment.component import component as augment_component
from tenfold.components.distill.component import component as distill_component
from tenfold.components.evaluate.component import component as evaluate_component
from tenfold.components.finetune.component import baseline_component
from tenfold.components.finetune.component import component as finetune_component
from tenfold.components.finish.component import component as finish_component
from tenfold.components.pretrain.component import component as pretrain_component
from tenfold.components.promote.component import component as promote_component
from tenfold.components.pseudo_label.component import component as pseudo_label_component
from tenfold.components.self_train.component import component as self_train_component
from tenfold.components.shard.component import component as shard_component
from tenfold.pipelines.cluster import ClusterSettings, Placement, launcher
from tenfold.trainjob import TrainJobSpec


@dataclass(frozen=True)
class Images:
    """Container images by digest: ``cpu`` for preflight, shard, promote and launchers, ``gpu`` for the others."""

    cpu: str
    gpu: str


class Stages:
    """The components of a pipeline.

    Args:
        images: of the tasks.
        trainjob: what the stages that train run as; without one they train in their task's pod.
        cluster: sizes and places of the tasks' pods.
    """

    def __init__(self, images: Images, trainjob: TrainJobSpec | None, cluster: ClusterSettings) -> None:
        if trainjob is not None:
            trainjob = trainjob.model_copy(update={"accelerator": cluster.accelerator})
        self._images, self._trainjob, self._place = images, trainjob, Placement(cluster)
        place, infer = self._place, cluster.infer

        def trained(component):
            if trainjob is None:
                return place(component(images.gpu), cluster.train)
            return place(component(images.cpu), launcher(cluster.control, trainjob), trainjob)

        self._sharding = shard_component(images.cpu, place)
        self._augment, self._pretrain = place(augment_component(images.gpu), infer), trained(pretrain_component)
        self._baseline, self._finetune = trained(baseline_component), trained(finetune_component)
        self._self_train = trained(self_train_component)
        self._pseudo_label = place(pseudo_label_component(images.gpu), infer)
        self._distill, self._evaluate = trained(distill_component), place(evaluate_component(images.gpu), infer)
        self._promote = self.control(promote_component)
        self.finish = place(finish_component(images.cpu), cluster.control, trainjob)  # which is to reap

    def control(self, component: Callable[[str], Any], *, torch: bool = False) -> Callable[..., dsl.PipelineTask]:
        """Return a component as one whose tasks run in a small CPU pod; with ``torch`` in the image that has it."""
        return self._place(component(self._images.gpu if torch else self._images.cpu), self._place.settings.control)

    def preflight(self, component: Callable[[str], Any]) -> Callable[..., dsl.PipelineTask]:
        """Return a preflight as one whose task compares what the pipeline asks for with what the cluster has."""
        needs = self._place.needs(self._trainjob)
        return self._place(component(self._images.cpu), self._place.settings.control, needs=needs)

    def pipeline_config(self) -> dsl.PipelineConfig:
        """Return what the cluster is told of a run as a whole."""
        return dsl.PipelineConfig(ttl_seconds_after_finished=round(86400 * self._place.settings.days_kept))

    def shard(self, config):
        """Add sharding to the pipeline that is being defined; return its outputs.

        Args:
            config: preflight's outputs.
        """
        task = self._sharding(config=config["shard"], watched=config["watched"])
        return task.set_caching_options(False).outputs

    def learn(self, config, data) -> None:
        """Add all tasks from the data set to promotion to the pipeline that is being defined.

        Args:
            config: preflight's outputs.
            data: sharding's outputs.
        """
        dataset = data["dataset"]
        views = self._augment(config=config["augment"], dataset=dataset).outputs
        alone = self._baseline(
            config=config["baseline"],
            dataset=dataset,
            views=views["baseline"],
            evaluation=views["evaluation"],
        )
        encoder = self._pretrain(
            config=config["pretrain"],
            dataset=data["unlabelled"],
            watched=data["watched"],
            views=views["pretrain"],
            evaluation=views["evaluation"],
        ).outputs["encoder"]
        tuned = self._finetune(
            config=config["finetune"], dataset=dataset, views=views["finetune"], evaluation=views["evaluation"],
            encoder=encoder,
        ).outputs["classifier"]  # fmt: skip
        teacher = self._self_train(
            config=config["self_train"],
            dataset=dataset,
            weak=views["weak"],
            strong=views["strong"],
            evaluation=views["evaluation"],
            teacher=tuned,
            encoder=encoder,
        ).outputs["better"]
        soft_labels = self._pseudo_label(
            config=config["pseudo_label"], dataset=dataset, weak=views["weak"], evaluation=views["evaluation"],
            teacher=teacher, finetuned=tuned, encoder=encoder,
        ).outputs["soft_labels"]  # fmt: skip
        student = self._distill(
            config=config["distill"], dataset=dataset, views=views["distill"], evaluation=views["evaluation"],
            soft_labels=soft_labels, teacher=teacher, finetuned=tuned,
        ).outputs["student"]  # fmt: skip
        measured = self._evaluate(
            config=config["evaluate"], dataset=dataset, evaluation_view=views["evaluation"], views=views["views"],
            encoder=encoder, baseline=alone.outputs["classifier"], finetuned=tuned, teacher=teacher,
            soft_labels=soft_labels, student=student,
        )  # fmt: skip
        made = measured.outputs
        self._promote(
            config=config["promote"], student=made["served"], encoder=encoder, evaluation=made["evaluation"]
        ).set_caching_options(False)
