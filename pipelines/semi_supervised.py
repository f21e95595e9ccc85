"""The pipeline: preflight → shard → augment → pretrain → finetune → [self_train] → pseudo_label → distill →
evaluate → promote, with the labels-alone baseline beside it.

The same DAG runs on a laptop and on a cluster. Data goes by pointer (the dataset URI is a parameter that ends
in the manifest's digest), each stage gets one canonical configuration string, and KFP's result cache is off
for the stages that look at the outside world.
"""

from kfp import dsl

from tenfold.components.preflight.component import component as preflight_component
from tenfold.pipelines.cluster import ClusterSettings
from tenfold.pipelines.stages import Images, Stages
from tenfold.trainjob import TrainJobSpec


def build(images: Images, trainjob: TrainJobSpec | None = None, cluster: ClusterSettings | None = None):
    """Return the pipeline with its components bound to ``images``.

    Args:
        images: of the tasks.
        trainjob: what the stages that train run as; without one they train in their task's pod.
        cluster: sizes and places of the tasks' pods.
    """
    stages = Stages(images, trainjob, cluster or ClusterSettings())
    preflight = stages.preflight(preflight_component)

    @dsl.pipeline(
        name="tenfold-semi-supervised",
        description="From unlabelled images and a handful of labels to a small classifier in the registry.",
        pipeline_config=stages.pipeline_config(),
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
        method: str = "",
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
            method: simclrv2 (a student is distilled) or semi_vit (the self-trained teacher is the result).
            teacher_depth: Depth of the teacher's network, e.g. 18 or 50 of a ResNet.
            teacher_width: Multiplier of a ResNet's channel counts, the teacher's.
            pretrain_epochs: Length of pretraining.
            temperature: Temperature of the contrastive loss.
            finetune_steps: Length of fine-tuning on the labels.
            self_train_on: true or false, whether the teacher trains itself on unlabelled images.
            threshold: Confidence above which a pseudo-label counts in self-training.
            student_depth: Depth of the student's ResNet, where one is distilled.
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
        with dsl.ExitHandler(stages.finish().set_caching_options(False), name="run"):
            ready = preflight(
                preset=preset, overrides=overrides, name=name, source=source, annotations=annotations,
                labels_per_class=labels_per_class, labels_fraction=labels_fraction, labels_file=labels_file,
                test_fraction=test_fraction, seed=seed, image_size=image_size, method=method,
                teacher_depth=teacher_depth,
                teacher_width=teacher_width, pretrain_epochs=pretrain_epochs, temperature=temperature,
                finetune_steps=finetune_steps, self_train_on=self_train_on, threshold=threshold,
                student_depth=student_depth, student_width=student_width, distill_epochs=distill_epochs,
                distill_temperature=distill_temperature, alpha=alpha, model_name=model_name, min_gain=min_gain,
            ).set_caching_options(False)  # fmt: skip
            config = ready.outputs
            data = stages.shard(config)
            stages.learn(config, data)

    return semi_supervised
