"""The retraining pipeline: preflight → shard → novelty → if enough is new: pretraining from the champion's encoder,
and all that follows, up to the gate.

For schedules: a source grows, and of it the new images alone are packed. A run that finds too few of them ends early
and has succeeded. What follows is the very part of the other pipeline (stages.py), so a stage that would do the same is
taken from its cache.
"""

from kfp import dsl

from tenfold.components.novelty.component import component as novelty_component
from tenfold.components.preflight.component import retrain_component
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
    preflight, novelty = stages.preflight(retrain_component), stages.control(novelty_component, torch=True)

    @dsl.pipeline(
        name="tenfold-retrain",
        description="Trains again from the champion when enough images are new; a gate keeps what is no better out.",
        pipeline_config=stages.pipeline_config(),
    )
    def retrain(
        preset: str = "digits",
        source: str = "",
        annotations: str = "",
        labels_per_class: str = "",
        labels_fraction: str = "",
        labels_file: str = "",
        model_name: str = "",
        min_new_images: str = "",
        min_gain: str = "",
        warm_start: str = "",
        pretrain_share: str = "",
        name: str = "",
        overrides: str = "",
    ):
        """Train again where enough images are new. A field that is left empty is as in the preset.

        Args:
            preset: Recipe to start from (see pipelines/presets).
            source: Images that grow: a folder, or s3://bucket/prefix.
            annotations: CSV file in the source with the columns path, label, split.
            labels_per_class: Labelled images of each class, drawn by the seed.
            labels_fraction: Labelled share of each class, instead of a number.
            labels_file: List of the labelled images' paths, instead of a number or share.
            model_name: Name in MLflow's model registry; its champion is what is retrained.
            min_new_images: With fewer images that are new to the champion the run ends early; 100 unless set.
            min_gain: Top-1 gain over the champion that promotion asks for.
            warm_start: true or false, whether pretraining starts from the champion's encoder; true unless set.
            pretrain_share: Length of pretraining from that encoder, as a share of the preset's; 0.3 unless set.
            name: Name of the run in MLflow and in the report.
            overrides: YAML mapping for everything else, for example pretrain.batch_size as a nested key.
        """
        with dsl.ExitHandler(stages.finish().set_caching_options(False), name="run"):
            ready = preflight(
                preset=preset, overrides=overrides, name=name, source=source, annotations=annotations,
                labels_per_class=labels_per_class, labels_fraction=labels_fraction, labels_file=labels_file,
                model_name=model_name, min_gain=min_gain, min_new_images=min_new_images, warm_start=warm_start,
                pretrain_share=pretrain_share,
            ).set_caching_options(False).set_display_name("preflight")  # fmt: skip
            config = ready.outputs
            data = stages.shard(config)
            found = novelty(
                config=config["novelty"], dataset=data["dataset"], known=config["known"], champion=config["champion"]
            )
            # a boolean: a condition on text goes wrong in silence where that holds a quote
            with dsl.If(found.set_caching_options(False).outputs["Output"] == True, name="enough-is-new"):  # noqa: E712
                stages.learn(config, data)

    return retrain
