"""A training stage as a Kubeflow TrainJob over many nodes.

The pipeline's task is then a small pod that makes the job, shows its logs and waits for it. Stands on the Kubeflow SDK
(``kubeflow`` 0.5) and the custom resource TrainJob of Kubeflow Trainer 2.
"""

from tenfold.trainjob.capacity import Demand, Needs, check_capacity
from tenfold.trainjob.launch import reap, run_trainjob
from tenfold.trainjob.spec import Quantity, TrainJobSpec

__all__ = ["Demand", "Needs", "Quantity", "TrainJobSpec", "check_capacity", "reap", "run_trainjob"]
