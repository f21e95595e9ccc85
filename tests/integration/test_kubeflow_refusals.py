"""What Kubeflow Pipelines refuses, and what becomes of a call that nobody answers: one line with the cure."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fake_kfp import TOKEN, FakeKubeflow

from tenfold.errors import AGAIN, ConfigError
from tenfold.pipelines.connection import Connection
from tenfold.pipelines.refusals import KubeflowError
from tenfold.pipelines.upload import upload

Call = Callable[..., subprocess.CompletedProcess[str]]


FORBIDDEN = (
    "Failed to authorize with API: PermissionDenied: User 'ada@example.com' is not authorized with reason:  (request: "
    "&ResourceAttributes{Namespace:team,Verb:create,Group:pipelines.kubeflow.org,Version:v1beta1,Resource:pipelines,"
    "Subresource:,Name:,}): Unauthorized access"
)
PROXY = (
    'services "ml-pipeline:http" is forbidden: User "ada" cannot get resource "services/proxy" in API group "" in the '
    'namespace "kubeflow"'
)


@pytest.mark.parametrize(
    ("how", "said", "status"),
    [
        (401, r"missing or has expired \(HTTP 401.*log in again: renew KFP_EXISTING_TOKEN", 2),
        ((403, FORBIDDEN), "ada@example.com may not create pipelines in the namespace team: ask .*pipelines-edit", 2),
        ((403, PROXY), "ada may not get services/proxy in the namespace kubeflow", 2),
        (403, "ask for Kubeflow's role kubeflow-pipelines-edit", 2),
        (409, "has one of that name already", 2),
        (400, r"refused it \(HTTP 400: 400 by the test\)", 2),
        (429, "the same again may work", AGAIN),
        (500, r"failed \(HTTP 500: 500 by the test\); the same again may work", AGAIN),
        (503, r"failed \(HTTP 503.*may work", AGAIN),
        ("html", "an answer that is not Kubeflow Pipelines'", 2),
        ("text", "an answer that is not Kubeflow Pipelines'", 2),
        ("list", "an answer that is not Kubeflow Pipelines'", 2),
        ("binary", "an answer that is not Kubeflow Pipelines'", 2),
        ("empty", "an answer without an id", 2),
        ("reset", "broke the connection off", AGAIN),
        ("silent", "did not answer in time", AGAIN),
        ("login", "sends its callers elsewhere.*not logged in", 2),
    ],
)
@pytest.mark.parametrize("name", ["pipeline_service_create_pipeline", "upload_pipeline_version"])
def test_a_refusal_or_an_outage_is_one_line_with_its_cure(
    kubeflow: FakeKubeflow, compiled: Path, name: str, how: Any, said: str, status: int
) -> None:
    kubeflow.faults = [(name, how)]
    connection = Connection(limits=(5, 0.5))
    with pytest.raises(KubeflowError, match=said) as caught:
        upload(connection, compiled)
    assert caught.value.exit_code == status
    assert "\n" not in str(caught.value)
    assert kubeflow.address in str(caught.value)
    assert kubeflow.count(name) == 1, "nothing is sent twice in silence"


@pytest.mark.parametrize("how", ["html", "binary", "silent", "reset", "login", 500])
def test_an_endpoint_that_is_something_else_is_told_at_once(kubeflow: FakeKubeflow, how: Any) -> None:
    kubeflow.faults = [("healthz_service_get_healthz", how)]
    with pytest.raises(KubeflowError, match=f"could not connect: {kubeflow.address}"):
        Connection(limits=(5, 0.5))
    assert kubeflow.requests == ["healthz_service_get_healthz"]


def test_a_lost_answer_of_a_call_that_makes_something_says_that_it_may_be_made(
    kubeflow: FakeKubeflow, compiled: Path
) -> None:
    kubeflow.faults = [("upload_pipeline_version", "reset")]
    with pytest.raises(KubeflowError, match="whether it was done is not known"):
        upload(Connection(), compiled)


def test_an_address_with_nothing_behind_it_is_told_with_what_to_check(
    kubeflow: FakeKubeflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, said, status in (
        ("http://127.0.0.1:9", r"takes no connection \(.*refused.*KF_PIPELINES_ENDPOINT.*port-forward", AGAIN),
        ("http://no-such-host.invalid", "there is no host of that name", 2),
        ("http://[::", "no address", 2),
        (kubeflow.address.replace("http://", "https://"), "does not speak TLS", 2),
        (kubeflow.address.removesuffix("/pipeline"), "has no such path.*ends in /pipeline", 2),
    ):
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", address)
        with pytest.raises(KubeflowError, match=said) as caught:
            Connection()
        assert caught.value.exit_code == status, address


def test_a_certificate_of_ones_own_is_taken_when_its_authority_is_given(
    kubeflow: FakeKubeflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(certificate, key)
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kubeflow.speak_tls(certificate, key))
    with pytest.raises(KubeflowError, match=r"certificate was not accepted.*--ca-file"):
        Connection(limits=(5, 5))
    assert Connection(ca_file=certificate, limits=(5, 5)).namespace == ""
    with pytest.raises(ConfigError, match="--ca-file: there is no file"):
        Connection(ca_file=tmp_path / "absent.pem")


def make_certificate(certificate: Path, key: Path) -> None:
    """Write a certificate for loopback that signs itself, and its key."""
    made = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(made.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(made, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key.write_bytes(made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))


def test_without_an_address_and_a_cluster_the_setting_is_named(
    kubeflow: FakeKubeflow, call: Call, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    done = call("upload", str(compiled))
    assert done.returncode == 2
    assert "set KF_PIPELINES_ENDPOINT to the address of its API" in done.stderr
    assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)


def test_secrets_of_the_address_and_the_environment_are_in_no_output(
    kubeflow: FakeKubeflow, call: Call, compiled: Path
) -> None:
    address = kubeflow.address.replace("http://", "http://ada:hidden@hidden-too@")
    secrets = {"AWS_SECRET_ACCESS_KEY": "hidden-key", "KF_PIPELINES_APP_OAUTH2_CLIENT_SECRET": "hidden-oauth"}
    done = call("upload", str(compiled), KF_PIPELINES_ENDPOINT=address, **secrets)
    assert done.returncode == 0, done.stderr
    token = "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl"  # the fake repeats it in its refusal
    refused = call("upload", str(compiled), KF_PIPELINES_ENDPOINT=address, KFP_EXISTING_TOKEN=token, **secrets)
    assert refused.returncode == 2
    assert "missing or has expired" in refused.stderr
    for output in (done.stdout, done.stderr, refused.stdout, refused.stderr):
        assert "hidden" not in output
        assert token not in output


def test_without_an_address_the_kubeconfigs_cluster_is_gone_through(
    kubeflow: FakeKubeflow, call: Call, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    monkeypatch.delenv("KFP_EXISTING_TOKEN")
    server = kubeflow.address.removesuffix("/pipeline")
    contexts = {"right": TOKEN, "wrong": "another-token"}
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "wrong",
        "clusters": [{"name": "fake", "cluster": {"server": server}}],
        "users": [{"name": name, "user": {"token": token}} for name, token in contexts.items()],
        "contexts": [{"name": name, "context": {"cluster": "fake", "user": name}} for name in contexts],
    }  # fmt: skip
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    done = call("upload", str(compiled), "--kube-context", "right")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(
        path.startswith("/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy/") for path in kubeflow.paths
    )
    refused = call("upload", str(compiled))
    assert refused.returncode == 2
    assert "another-token" not in refused.stderr
    unknown = call("upload", str(compiled), "--kube-context", "absent")
    assert unknown.returncode == 2
    assert "absent" in unknown.stderr


def test_a_token_file_is_read_anew_for_every_call(
    kubeflow: FakeKubeflow, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    monkeypatch.delenv("KFP_EXISTING_TOKEN")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    with pytest.raises(ConfigError, match="which cannot be read"):
        Connection()
    file.write_text(TOKEN)
    connection = Connection()
    file.write_text("an-old-token")
    with pytest.raises(KubeflowError, match="missing or has expired") as caught:
        upload(connection, compiled)
    assert "an-old-token" not in str(caught.value)
    file.write_text(TOKEN)
    assert upload(connection, compiled).fresh
