"""The pipelines by name."""

from tenfold.pipelines import retrain, semi_supervised

SEMI_SUPERVISED, RETRAIN = "semi-supervised", "retrain"
PIPELINES = {SEMI_SUPERVISED: semi_supervised.build, RETRAIN: retrain.build}
