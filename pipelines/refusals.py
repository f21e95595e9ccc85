"""What an answer of Kubeflow Pipelines, or none, means to the user: one line with the act, the cause and the cure."""

from __future__ import annotations

import json
import re

from kfp_server_api import ApiException
from urllib3 import exceptions as http

from tenfold.errors import TenfoldError

#: Verbs that Kubeflow's role for looking on holds; all others need the one for editing.
_LOOKS = {"get", "list", "readArtifact"}
_LONGEST = 500


class KubeflowError(TenfoldError):
    """Kubeflow Pipelines refused, failed or could not be reached."""


class NotThereError(KubeflowError):
    """What a call names is not there."""


def explained(error: Exception, act: str, where: str, missing: str = "", changes: bool = False) -> KubeflowError:
    """Return what ``error`` means.

    Args:
        error: anything that a call of kfp's client raised.
        act: what was tried, as in "list the runs".
        where: address of the API.
        missing: what to say where the API has no such object.
        changes: the call makes or changes something; if its answer is lost, nobody knows whether it was done.

    Raises:
        Exception: ``error`` itself where it is a defect of tenfold's.
    """
    cause: BaseException | None = error
    # The client stumbles over the body of some of its own exceptions: the first one is the answer.
    while cause is not None and not isinstance(cause, ApiException | http.HTTPError | OSError):
        cause = cause.__cause__ or cause.__context__
    start = f"could not {act}: {where}"
    unsure = "; whether it was done is not known, `tenfold list` shows it" if changes else ""
    if isinstance(cause, ApiException) and cause.status:
        return _answered(cause, start, missing, unsure)
    if isinstance(cause, ApiException):  # TLS; see kfp_server_api/rest.py
        return KubeflowError(f"{start}: {_tls(str(cause.reason))}")
    if cause is not None:
        return _unreached(cause, start, unsure)
    if isinstance(error, TypeError | ValueError | AttributeError | KeyError):  # while the answer was taken apart
        return KubeflowError(
            f"{start} gave an answer that is not Kubeflow Pipelines'; KF_PIPELINES_ENDPOINT must be the address of its "
            "API, which behind Kubeflow's gateway ends in /pipeline"
        )
    raise error


def _answered(error: ApiException, start: str, missing: str, unsure: str) -> KubeflowError:
    status, said, ours = error.status, *_said(error.body)
    told = f": {said}" if said else ""
    if status in (301, 302, 303, 307, 308):
        return KubeflowError(
            f"{start} sends its callers elsewhere (HTTP {status}), as a login page's gateway does: you are not logged "
            "in there, or the address is not the one of the API. Give a token (KFP_EXISTING_TOKEN, or a file named by "
            "KF_PIPELINES_SA_TOKEN_PATH), or use https:// where the address says http://"
        )
    if status == 401:
        return KubeflowError(
            f"{start} does not take this login, it is missing or has expired (HTTP 401{told}); log in again: renew "
            "KFP_EXISTING_TOKEN, the file of KF_PIPELINES_SA_TOKEN_PATH, or the kubeconfig's credentials"
        )
    if status == 403:
        return KubeflowError(f"{start} does not allow it (HTTP 403). {_right(said)}")
    if status == 404 and ours:
        return NotThereError(f"could not {start.partition('could not ')[2]}: {missing or said} (HTTP 404)")
    if status == 404:
        return KubeflowError(
            f"{start} has no such path (HTTP 404): that is not the API of Kubeflow Pipelines 2; behind Kubeflow's "
            "gateway its address ends in /pipeline"
        )
    if status == 409:
        return KubeflowError(f"{start} has one of that name already (HTTP 409{told})")
    if status in (408, 429) or status >= 500:
        return KubeflowError(f"{start} failed (HTTP {status}{told}); the same again may work{unsure}", again=True)
    return KubeflowError(f"{start} refused it (HTTP {status}{told})")


def _unreached(cause: BaseException, start: str, unsure: str) -> KubeflowError:
    text = _line(str(cause))
    if isinstance(cause, http.NameResolutionError):
        return KubeflowError(f"{start}: there is no host of that name; check KF_PIPELINES_ENDPOINT")
    if isinstance(cause, http.LocationValueError):
        return KubeflowError(f"{start} is no address; KF_PIPELINES_ENDPOINT must be like https://host/pipeline")
    if isinstance(cause, http.SSLError):
        return KubeflowError(f"{start}: {_tls(text)}")
    if isinstance(cause, http.NewConnectionError):
        reason = _line(str(cause.__cause__ or text))
        return KubeflowError(
            f"{start} takes no connection ({reason}); check KF_PIPELINES_ENDPOINT, and whether the port-forward runs",
            again=True,
        )
    if isinstance(cause, http.TimeoutError | TimeoutError):
        return KubeflowError(f"{start} did not answer in time; the same again may work{unsure}", again=True)
    if isinstance(cause, OSError) and cause.filename is not None:
        return KubeflowError(f"{start}: {cause.filename}: {cause.strerror}")
    return KubeflowError(f"{start} broke the connection off ({text}); the same again may work{unsure}", again=True)


def _said(body: object) -> tuple[str, bool]:
    """Return the message of an answer, and whether it is one of the API's own and not some gateway's."""
    try:
        answer = json.loads(body)  # type: ignore[arg-type]
        return _line(str(answer.get("message") or answer.get("error") or "")), "code" in answer
    except (TypeError, ValueError, AttributeError):
        return "", False


def _right(said: str) -> str:
    """Return who may not do what, and which role to ask for.

    The API server asks Kubernetes with a SubjectAccessReview and prints it; through the Kubernetes API server's proxy
    the refusal is that server's.
    """
    review = re.search(r"User '([^']*)' is not authorized.*?Namespace:([^,}]*),Verb:([^,]*),.*?Resource:([^,]*),", said)
    if review is not None:
        user, namespace, verb, resource = review.groups()
        role = "kubeflow-pipelines-view" if verb in _LOOKS else "kubeflow-pipelines-edit"
        place = f"in the namespace {namespace}" if namespace else "for all namespaces"
        return f"{user} may not {verb} {resource} {place}: ask who owns it for the cluster role {role} there"
    proxied = re.search(r'User "([^"]*)" cannot (\w+) resource "([^"]*)".*?in the namespace "([^"]*)"', said)
    if proxied is not None:
        user, verb, resource, namespace = proxied.groups()
        return f"{user} may not {verb} {resource} in the namespace {namespace}: ask for a role there with that right"
    return f"{said or 'It does not say why'}: ask for Kubeflow's role kubeflow-pipelines-edit in your namespace"


def _tls(text: str) -> str:
    return (
        f"its certificate was not accepted or it does not speak TLS ({_line(text)}); give the authority's certificates "
        "with --ca-file, or use http:// where the server has no TLS"
    )


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
