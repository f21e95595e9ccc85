"""What the API server's errors mean: what may pass, what is missing, which right the role lacks."""

from __future__ import annotations

import json
import re
from typing import Any

from tenfold.errors import TrainJobError

_RULES = {
    "trainjobs": "create, get, list, delete",
    "trainingruntimes": "get",
    "clustertrainingruntimes": "get",
    "pods": "list",
    "pods/log": "get",
}


class AbsentError(Exception):
    """The object that a call names is not there."""


class PresentError(Exception):
    """An object of that name is there already, or it is another one than the call means."""


def passing(act: str, error: Exception) -> str:
    """Return an error that may pass as text; raise what will not.

    Args:
        act: verb and resource of the call.
        error: the Kubernetes client's, or one of the SDK's that hides it.

    Raises:
        AbsentError: 404 of an object.
        PresentError: 409.
        TrainJobError: anything else that will not pass.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ApiException | HTTPError | OSError):
        cause = cause.__cause__
    if cause is None:
        raise error
    if not isinstance(cause, ApiException):
        return f"{type(cause).__name__}: {cause}"
    status, message, details = answer(cause)
    if status in (0, 408, 429) or status >= 500:
        return message
    if status == 404 and details.get("name"):
        raise AbsentError(message) from None
    if status == 404:
        raise TrainJobError(
            "this cluster has no TrainJobs: the custom resource trainjobs.trainer.kubeflow.org is not installed; let "
            "an administrator install Kubeflow Trainer 2, or compile with --launcher pod"
        ) from None
    if status == 409:
        raise PresentError(message) from None
    raise TrainJobError(f"{act}: the Kubernetes API server refused: {message}{missing_rule(message)}") from None


def answer(error: Any) -> tuple[int, str, dict[str, Any]]:
    """Return status, message and details of the API server's answer."""
    try:
        body = json.loads(error.body)
        return error.status, f"{error.status} {body['message']}", body.get("details") or {}
    except (TypeError, ValueError, KeyError):
        return error.status, f"{error.status} {error.reason}", {}


def missing_rule(message: str) -> str:
    """Return which rule the role lacks, where ``message`` is a refusal for want of one; else nothing.

    Admission webhooks and quotas refuse with the same status 403.
    """
    found = re.search(r'cannot (\w+) resource "([\w/]+)" in API group "([\w.]*)"', message)
    if found is None:
        return ""
    verb, resource, group = found.groups()
    kind = "cluster role" if resource == "clustertrainingruntimes" else "role"
    return (
        f". The {kind} of this service account lacks the verb {verb} on {resource}; give it the rule "
        f'apiGroups: ["{group}"], resources: ["{resource}"], verbs: [{_RULES.get(resource, verb)}]'
    )
