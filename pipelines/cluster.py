"""What a task is told by its pod's environment on a cluster; kfp.local passes over it.

Names are fixed, so that a run started from the Kubeflow UI needs nothing but the form: the run's id comes
from the pod's label, addresses from the ConfigMap ``tenfold-env``, credentials from the Secret
``tenfold-s3``. None of these enters KFP's cache key.
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl, kubernetes

from tenfold.environment import ADDRESSES, CONFIG_MAP, CREDENTIALS, OPTIONAL, SECRET
from tenfold.trainjob import TrainJobSpec


def placed(component: Callable[..., dsl.PipelineTask]) -> Callable[..., dsl.PipelineTask]:
    """Return ``component`` as one whose tasks know their run's identity, addresses and credentials.

    Absent credentials mean the pod's own role.
    """

    def task(**arguments: Any) -> dsl.PipelineTask:
        made = component(**arguments)
        kubernetes.use_field_path_as_env(made, "TENFOLD_RUN_ID", "metadata.labels['pipeline/runid']")
        kubernetes.use_config_map_as_env(made, CONFIG_MAP, {name: name for name in ADDRESSES})
        kubernetes.use_config_map_as_env(made, CONFIG_MAP, {name: name for name in OPTIONAL}, optional=True)
        kubernetes.use_secret_as_env(made, SECRET, {name: name for name in CREDENTIALS}, optional=True)
        return made

    return task


def launching(component: Callable[..., dsl.PipelineTask], trainjob: TrainJobSpec) -> Callable[..., dsl.PipelineTask]:
    """Return ``component`` as one whose tasks are small pods that have ``trainjob`` do their training.

    Neither the environment nor resources are in KFP's cache key: a result that was trained on fewer nodes is taken.
    """

    def task(**arguments: Any) -> dsl.PipelineTask:
        made = component(**arguments)
        made.set_env_variable("TENFOLD_TRAINJOB", trainjob.to_json())
        made.set_cpu_request("500m").set_cpu_limit("2").set_memory_request("1Gi").set_memory_limit("4Gi")
        return made

    return task
