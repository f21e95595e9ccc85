"""The connection to an installation of Kubeflow Pipelines: kfp's own client, bounded in time and quiet.

Login and address are kfp's: ``KF_PIPELINES_ENDPOINT`` (else the pod's own cluster, else the kubeconfig's), a token
(``KFP_EXISTING_TOKEN``, as kfp's command line has it), a service account's token file
(``KF_PIPELINES_SA_TOKEN_PATH``), Google's proxy (``KF_PIPELINES_IAP_OAUTH2_CLIENT_ID``), or cookies and headers in
``~/.config/kfp/context.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

from tenfold.errors import ConfigError, TenfoldError, redact
from tenfold.pipelines.refusals import KubeflowError, explained
from tenfold.trainjob.cluster import own_namespace

#: Seconds for connecting and for each answer; kfp's own client waits without end.
LIMITS = (10.0, 30.0)
_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")


class Connection:
    """One installation, and the namespace in it that is worked in.

    Args:
        namespace: the user's, where the installation is of many users; without one as kfp's client finds it.
        kube_context: of the kubeconfig, where no address is given.
        ca_file: certificates of the authority that signed the server's.
        limits: seconds for connecting, and for each answer.

    Attributes:
        client: kfp's client; its groups of calls (``client.runs`` and others) go through :meth:`call`.
        namespace: the user's; empty where the installation has one user.
        kube_context: as given.

    Raises:
        ConfigError: there is no address, or the installation is of many users and no namespace is given.
        KubeflowError: it cannot be reached, or does not let us in.
    """

    def __init__(
        self, namespace: str | None = None, kube_context: str | None = None, ca_file: Path | None = None,
        limits: tuple[float, float] = LIMITS,
    ) -> None:  # fmt: skip
        self._limits, self.kube_context = limits, kube_context
        host = os.environ.get("KF_PIPELINES_ENDPOINT") or None
        self.where = _public(host or "the Kubeflow Pipelines of this cluster")
        if ca_file is not None and not ca_file.is_file():
            raise ConfigError(f"--ca-file: there is no file {ca_file}")
        if host is None:
            _require_cluster(kube_context)
        self.client = self._connect(host, kube_context, ca_file)
        health = self.call("connect", self.client.healthzs.healthz_service_get_healthz)
        self.namespace = ""
        if health.multi_user:
            self.namespace = namespace or self.client.get_user_namespace() or own_namespace()
            if not self.namespace:
                raise ConfigError(
                    f"{self.where} is an installation for many users: give --namespace, or set KFP_NAMESPACE, to the "
                    "namespace of your profile"
                )
        self._ui = os.environ.get("KF_PIPELINES_UI_ENDPOINT") or host

    def _connect(self, host: str | None, kube_context: str | None, ca_file: Path | None) -> Any:
        token = os.environ.get("KFP_EXISTING_TOKEN") or None
        file = os.environ.get("KF_PIPELINES_SA_TOKEN_PATH")
        if token is None and file and not os.access(file, os.R_OK):
            raise ConfigError(f"KF_PIPELINES_SA_TOKEN_PATH names {file}, which cannot be read")
        credentials = ServiceAccountTokenVolumeCredentials() if file or _TOKEN.is_file() else None
        options = {"ssl_ca_cert": str(ca_file)} if ca_file else {}
        try:
            # what it prints while it logs in is for whoever sits there, not for what reads our output
            with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
                warnings.simplefilter("ignore")
                return _Client(
                    host=host, existing_token=token, credentials=credentials, kube_context=kube_context, **options
                )
        except Exception as error:  # kfp's ways to log in raise whatever their libraries do
            raise KubeflowError(self._clean(f"{self.where}: kfp's client cannot log in: {error}")) from None

    def call(
        self, act: str, function: Callable[..., Any], *, missing: str = "", changes: bool = False, **given: Any
    ) -> Any:
        """Return the answer to one call of the API.

        Args:
            act: what it does, as in "list the runs"; for errors.
            function: of one of the client's groups.
            missing: what to say where the API has no such object.
            changes: it makes or changes something.
            given: the call's own arguments.

        Raises:
            KubeflowError: see :func:`tenfold.pipelines.refusals.explained`.
        """
        try:
            answer = function(**given, _request_timeout=self._limits)
            if not isinstance(json.loads(self.client.transport.last_response.data), dict):
                raise ValueError(act)
        except TenfoldError:
            raise
        except Exception as error:
            trouble = explained(error, act, self.where, missing, changes)
            trouble.args = (self._clean(str(trouble)),)
            raise trouble from None
        return answer

    def link(self, kind: str, identity: str) -> str:
        """Return the address of an object's page in the user interface; empty where that is not known."""
        return f"{_public(self._ui).rstrip('/')}/#/{kind}/details/{identity}" if self._ui else ""

    def _clean(self, text: str) -> str:
        """Return ``text`` without the token that the client holds, should a server have repeated it."""
        held = [os.environ.get("KFP_EXISTING_TOKEN")]
        if hasattr(self, "client"):
            held += [each.removeprefix("Bearer ") for each in self.client.transport.configuration.api_key.values()]
        for secret in held:
            text = text.replace(secret, "***") if secret and len(secret) > 3 else text
        return redact(" ".join(text.split()))


class _Client(kfp.Client):
    """kfp's client without its endless patience."""

    @property
    def transport(self) -> Any:
        """What sends its requests."""
        return self._run_api.api_client

    def _load_config(self, *args: Any, **given: Any) -> Any:
        config = super()._load_config(*args, **given)
        config.retries = False  # urllib3 tries three times in silence, and follows a login page's redirection
        config.host = host = config.host.rstrip("/")
        refresh = config.refresh_api_key_hook
        if refresh is not None:

            def refresh_and_stay(held: Any) -> None:
                refresh(held)  # a kubeconfig's sets its server as the host, without the way to the API behind it
                held.host, held.refresh_api_key_hook = host, refresh_and_stay

            config.refresh_api_key_hook = refresh_and_stay
        return config

    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
        """Leave the question to :class:`Connection`: kfp's own asks five times, and prints a traceback each time."""
        return kfp_server_api.V2beta1GetHealthzResponse(multi_user=False)


def _require_cluster(kube_context: str | None) -> None:
    """Refuse to go on where neither a pod's cluster nor a kubeconfig gives an address: kfp would take localhost."""
    from kubernetes import client, config

    try:
        config.load_incluster_config(client_configuration=client.Configuration())
    except config.ConfigException:
        try:
            config.load_kube_config(client_configuration=client.Configuration(), context=kube_context)
        except config.ConfigException as error:
            raise ConfigError(
                "there is no Kubeflow Pipelines to talk to: set KF_PIPELINES_ENDPOINT to the address of its API, for "
                f"example https://kubeflow.example.com/pipeline (there is no cluster either: {error})"
            ) from None


def _public(address: str) -> str:
    """Return an address without what only its owner may know: the user's part, and a query."""
    return re.sub(r"^(\w+://)[^/\s]+@", r"\1", address).partition("?")[0].rstrip("/")
