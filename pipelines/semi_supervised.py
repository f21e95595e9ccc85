"""The pipeline: preflight → shard → augment → pretrain → finetune → [self_train] → pseudo_label → distill →
evaluate → promote, with the labels-alone baseline beside it.

The same DAG runs on a laptop and on a cluster. Data goes by pointer (the dataset URI is a parameter that ends
in the manifest's digest), each stage gets one canonical configuration string, and KFP's result cache is off
for the stages that look at the outside world.
"""

from dataclasses import dataclass

from kfp import dsl

from tenfold.components.augment.component import component as augment_component
from tenfold.components.distill.component import component as distill_component
from tenfold.components.evaluate.component import component as evaluate_component
from tenfold.components.finetune.component import baseline_component
from tenfold.components.finetune.component import component as finetune_component
from tenfold.components.finish.component import component as finish_component
from tenfold.components.preflight.component import component as preflight_component
from tenfold.components.pretrain.component import component as pretrain_component
from tenfold.components.promote.component import component as promote_component
from tenfold.components.pseudo_label.component import component as pseudo_label_component
from tenfold.components.self_train.component import component as self_train_component
from tenfold.components.shard.component import component as shard_component
from tenfold.pipelines.cluster import ClusterSettings, Placement, launcher
from tenfold.trainjob import TrainJobSpec

#: Tasks whose result depends on the outside world, so that a cached one could be stale.
UNCACHED = ("preflight", "sharding", "list-images", "pack", "shard", "promote", "finish")


@dataclass(frozen=True)
class Images:
    """Container images by digest: ``cpu`` for preflight, shard, promote and launchers, ``gpu`` for the others."""

    cpu: str
    gpu: str


def build(images: Images, trainjob: TrainJobSpec | None = None, cluster: ClusterSettings | None = None):
    """Return the pipeline with its components bound to ``images``.

    Args:
        images: of the tasks.
        trainjob: what the stages that train run as; without one they train in their task's pod.
        cluster: sizes and places of the tasks' pods.
    """
    place = Placement(cluster or ClusterSettings())
    control, infer = place.settings.control, place.settings.infer

    def trained(component):
        if trainjob is None:
            return place(component(images.gpu), place.settings.train)
        return place(component(images.cpu), launcher(control, trainjob), trainjob)

    preflight, sharding = place(preflight_component(images.cpu), control), shard_component(images.cpu, place)
    augment, pretrain = place(augment_component(images.gpu), infer), trained(pretrain_component)
    baseline, finetune = trained(baseline_component), trained(finetune_component)
    self_train, pseudo_label = trained(self_train_component), place(pseudo_label_component(images.gpu), infer)
    distill, evaluate = trained(distill_component), place(evaluate_component(images.gpu), infer)
    promote = place(promote_component(images.cpu), control)
    finish = place(finish_component(images.cpu), control, trainjob)  # which is to reap

    @dsl.pipeline(
        name="tenfold-semi-supervised",
        description="From unlabelled images and a handful of labels to a small classifier in the registry.",
        pipeline_config=dsl.PipelineConfig(ttl_seconds_after_finished=round(86400 * place.settings.days_kept)),
    )
    def semi_supervised(
        preset: str = "digits",
        source: str = "",
        annotations: str = "",
        labels_per_class: str = "",
        labels_fraction: str = "",
        labels_file: str = "",
        test_fraction: str = "",
        image_size: str = "",
        teacher_depth: str = "",
        teacher_width: str = "",
        pretrain_epochs: str = "",
        temperature: str = "",
        finetune_steps: str = "",
        self_train_on: str = "",
        threshold: str = "",
        student_depth: str = "",
        student_width: str = "",
        distill_epochs: str = "",
        distill_temperature: str = "",
        alpha: str = "",
        model_name: str = "",
        min_gain: str = "",
        seed: str = "",
        name: str = "",
        overrides: str = "",
    ):
        """Train a student. A field that is left empty is as in the preset.

        Args:
            preset: Recipe to start from (see pipelines/presets).
            source: Images: digits, a folder, or s3://bucket/prefix.
            annotations: CSV file in the source with the columns path, label, split.
            labels_per_class: Labelled images of each class, drawn by the seed.
            labels_fraction: Labelled share of each class, instead of a number.
            labels_file: List of the labelled images' paths, instead of a number or share.
            test_fraction: Share of the labelled source set apart for testing, if it brings no test split.
            image_size: Side of a view in pixels.
            teacher_depth: Depth of the teacher's ResNet, e.g. 18 or 50.
            teacher_width: Multiplier of the teacher's channel counts.
            pretrain_epochs: Length of SimCLR pretraining.
            temperature: Temperature of the contrastive loss.
            finetune_steps: Length of fine-tuning on the labels.
            self_train_on: true or false, whether the teacher trains itself on unlabelled images.
            threshold: Confidence above which a pseudo-label counts in self-training.
            student_depth: Depth of the student's ResNet.
            student_width: Multiplier of the student's channel counts.
            distill_epochs: Length of distillation.
            distill_temperature: Temperature of the soft labels.
            alpha: Weight of the soft labels against the true ones, 0 to 1.
            model_name: Name in MLflow's model registry.
            min_gain: Top-1 gain over the champion that promotion asks for.
            seed: Seed of the run.
            name: Name of the run in MLflow and in the report.
            overrides: YAML mapping for everything else, for example pretrain.batch_size as a nested key.
        """
        with dsl.ExitHandler(finish().set_caching_options(False), name="run"):
            ready = preflight(
                preset=preset, overrides=overrides, name=name, source=source, annotations=annotations,
                labels_per_class=labels_per_class, labels_fraction=labels_fraction, labels_file=labels_file,
                test_fraction=test_fraction, seed=seed, image_size=image_size, teacher_depth=teacher_depth,
                teacher_width=teacher_width, pretrain_epochs=pretrain_epochs, temperature=temperature,
                finetune_steps=finetune_steps, self_train=self_train_on, threshold=threshold,
                student_depth=student_depth, student_width=student_width, distill_epochs=distill_epochs,
                distill_temperature=distill_temperature, alpha=alpha, model_name=model_name, min_gain=min_gain,
            ).set_caching_options(False)  # fmt: skip
            config = ready.outputs
            data = sharding(config=config["shard"], watched=config["watched"]).set_caching_options(False).outputs
            dataset = data["dataset"]
            views = augment(config=config["augment"], dataset=dataset).outputs
            alone = baseline(
                config=config["baseline"],
                dataset=dataset,
                views=views["baseline"],
                evaluation=views["evaluation"],
            )
            encoder = pretrain(
                config=config["pretrain"],
                dataset=data["unlabelled"],
                watched=data["watched"],
                views=views["contrastive"],
                evaluation=views["evaluation"],
            ).outputs["encoder"]
            tuned = finetune(
                config=config["finetune"], dataset=dataset, views=views["finetune"], evaluation=views["evaluation"],
                encoder=encoder,
            ).outputs["classifier"]  # fmt: skip
            teacher = self_train(
                config=config["self_train"],
                dataset=dataset,
                weak=views["weak"],
                strong=views["strong"],
                teacher=tuned,
            ).outputs["better"]
            soft_labels = pseudo_label(
                config=config["pseudo_label"], dataset=dataset, weak=views["weak"], evaluation=views["evaluation"],
                teacher=teacher, finetuned=tuned, encoder=encoder,
            ).outputs["soft_labels"]  # fmt: skip
            student = distill(
                config=config["distill"], dataset=dataset, views=views["distill"], evaluation=views["evaluation"],
                soft_labels=soft_labels, teacher=teacher, finetuned=tuned,
            ).outputs["student"]  # fmt: skip
            measured = evaluate(
                config=config["evaluate"], dataset=dataset, evaluation_view=views["evaluation"], views=views["views"],
                encoder=encoder, baseline=alone.outputs["classifier"], finetuned=tuned, teacher=teacher,
                soft_labels=soft_labels, student=student,
            )  # fmt: skip
            promote(
                config=config["promote"], student=student, encoder=encoder, evaluation=measured.outputs["evaluation"]
            ).set_caching_options(False)

    return semi_supervised
