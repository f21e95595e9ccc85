"""What every installation promises: the manifests below k8s/, rendered, object by object."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
from fake_kubernetes import serve, strict
from kubernetes.utils import parse_quantity
from manifests import CLUSTER_SCOPED, K8S, Object, named, pod_templates, selects

from tenfold.environment import ADDRESSES, CONFIG_MAP, CREDENTIALS, OPTIONAL, SECRET
from tenfold.errors import TrainJobError
from tenfold.progress import Reporter
from tenfold.trainjob import Demand, Needs, TrainJobSpec, check_capacity, run_trainjob
from tenfold.trainjob.spec import NODE, manifest

ROOT = K8S.parent
SCHEMAS = strict(json.loads((ROOT / "tests/crd_schemas.json").read_text()))
#: Kinds that nothing here can check: Kueue's and KServe's schemas are not in the repository.
UNVALIDATED = {"ClusterQueue", "LocalQueue", "ResourceFlavor", "InferenceService"}
#: The oldest and the newest Kubernetes that the manifests are for.
VERSIONS = ("1.30", "1.37")
RBAC = {"Role", "ClusterRole"}


# --- schemas -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_its_schema_to_the_letter(objects: list[Object], version: str) -> None:
    for each in objects:
        kind = each["kind"]
        if kind in SCHEMAS:
            jsonschema.validate(each, SCHEMAS[kind], cls=jsonschema.Draft202012Validator)
        elif kind not in UNVALIDATED:
            kubernetes_validate.validate(each, version, strict=True)
    for template in pod_templates(objects):  # those in custom resources too
        body = {"metadata": {"labels": template.labels}, "spec": template.spec}
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "checked"}, "template": body}
        kubernetes_validate.validate(pod, version, strict=True)


def test_no_component_is_forgotten_and_every_custom_kind_is_known(everything: list[Object]) -> None:
    custom = {each["kind"] for each in everything if each["apiVersion"].partition("/")[0].count(".") >= 2}
    core = {"ClusterRole", "ClusterRoleBinding", "NetworkPolicy", "Role", "RoleBinding"}
    assert custom - core == UNVALIDATED | set(SCHEMAS) - {"$comment"}


# --- what is where -------------------------------------------------------------------------------------


def test_everything_is_in_the_namespace_that_the_overlay_names(rendered: dict[str, list[Object]]) -> None:
    for overlay, namespace in (("kind", "kubeflow-user-example-com"), ("prod", "team"), ("everything", "elsewhere")):
        assert [e["metadata"]["name"] for e in rendered[overlay] if e["kind"] == "Namespace"] == [namespace]
        for each in rendered[overlay]:
            if each["kind"] not in CLUSTER_SCOPED:
                assert each["metadata"]["namespace"] == namespace, each["metadata"]["name"]
            if each["kind"] in {"RoleBinding", "ClusterRoleBinding"}:
                subjects = [("ServiceAccount", "default-editor", namespace)]
                assert [(s["kind"], s["name"], s["namespace"]) for s in each["subjects"]] == subjects
            if each["kind"] == "ClusterRoleBinding":
                assert each["metadata"]["name"] == f"{each['roleRef']['name']}.{namespace}"


def test_the_namespace_gets_pod_security_restricted_and_keeps_the_labels_that_kubeflow_gave_it(
    prod: list[Object],
) -> None:
    labels = named(prod, "Namespace", "team")["metadata"]["labels"]
    modes = {f"pod-security.kubernetes.io/{mode}" for mode in ("enforce", "audit", "warn")}
    assert {labels[mode] for mode in modes} == {"restricted"}
    assert all(re.fullmatch(r"v1\.\d+", labels[f"{mode}-version"]) for mode in modes)
    assert set(labels) == modes | {f"{mode}-version" for mode in modes} | {"tenfold.dev/namespace"}


def test_addresses_and_credentials_have_the_names_that_pods_look_for(rendered: dict[str, list[Object]]) -> None:
    for overlay in ("kind", "prod"):
        keys = set(named(rendered[overlay], "ConfigMap", CONFIG_MAP)["data"])
        assert set(ADDRESSES) <= keys <= {*ADDRESSES, *OPTIONAL}
    assert set(named(rendered["kind"], "Secret", SECRET)["data"]) == set(CREDENTIALS)


def test_no_secret_is_in_the_repository_and_none_stands_in_a_pod_by_value(rendered: dict[str, list[Object]]) -> None:
    assert not [each for name in ("prod", "everything", "base") for each in rendered[name] if each["kind"] == "Secret"]
    for template in pod_templates(rendered["everything"]):
        for container in template.containers:
            for variable in container.get("env", []):
                if re.search("PASSWORD|SECRET|KEY|TOKEN", variable["name"]) and "FILE" not in variable["name"]:
                    assert "secretKeyRef" in variable["valueFrom"], variable["name"]
                assert not re.search("//[^/@]*:[^/@]*@", variable.get("value", "")), variable["name"]


# --- pods ----------------------------------------------------------------------------------------------


def test_every_pod_fits_pod_security_restricted_and_has_a_read_only_root(objects: list[Object]) -> None:
    for template in pod_templates(objects):
        pod = template.spec["securityContext"]
        assert pod["runAsNonRoot"] is True, template.owner
        assert pod["runAsUser"] > 0, template.owner
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, template.owner
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(template.spec), template.owner
        kinds = {kind for volume in template.spec.get("volumes", []) for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "secret", "configMap"}, template.owner
        for container in template.containers:
            held = container["securityContext"]
            assert held["allowPrivilegeEscalation"] is False, template.owner
            assert held["capabilities"] == {"drop": ["ALL"]}, template.owner
            assert held["readOnlyRootFilesystem"] is True, template.owner
            assert not {"privileged", "runAsUser", "runAsNonRoot", "seccompProfile"} & set(held), template.owner
            assert not any("hostPort" in port for port in container.get("ports", [])), template.owner
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], template.owner


def test_no_pod_has_a_token_and_each_kind_has_an_account_of_its_own(objects: list[Object]) -> None:
    accounts = {e["metadata"]["name"]: e for e in objects if e["kind"] == "ServiceAccount"}
    assert all(each["automountServiceAccountToken"] is False for each in accounts.values())
    used = [template.spec["serviceAccountName"] for template in pod_templates(objects)]
    assert sorted(used) == sorted(accounts)
    bound = {s["name"] for e in objects if e["kind"].endswith("RoleBinding") for s in e["subjects"]}
    assert bound == {"default-editor"}
    for template in pod_templates(objects):
        assert template.spec["automountServiceAccountToken"] is False, template.owner


def test_every_container_asks_for_cpu_and_memory_and_is_bounded_in_memory_and_disk(objects: list[Object]) -> None:
    for template in pod_templates(objects):
        for container in template.containers:
            assert set(container["resources"]["requests"]) >= {"cpu", "memory"}, template.owner
            assert "memory" in container["resources"]["limits"], template.owner
        for volume in template.spec.get("volumes", []):
            assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": None}), (template.owner, volume["name"])


def test_the_namespace_is_bounded_and_what_names_no_memory_gets_some(objects: list[Object]) -> None:
    hard = named(objects, "ResourceQuota", "tenfold")["spec"]["hard"]
    requests = {f"requests.{each}" for each in ("cpu", "memory", "storage", "nvidia.com/gpu")}
    assert set(hard) == requests | {"limits.memory", "persistentvolumeclaims", "pods"}
    (limits,) = named(objects, "LimitRange", "tenfold")["spec"]["limits"]
    assert (set(limits["default"]), set(limits["defaultRequest"])) == ({"memory"}, {"cpu", "memory"})


def test_in_production_every_image_is_named_by_digest(prod: list[Object], everything: list[Object]) -> None:
    for rendered_ in (prod, everything):
        images = [c["image"] for template in pod_templates(rendered_) for c in template.containers]
        assert len(images) >= 3
        assert all(re.fullmatch(r"[^:@]+@sha256:[0-9a-f]{64}", image) for image in images), images
    version = next(each for each in everything if each["kind"] == "PipelineVersion")
    executors = version["spec"]["pipelineSpec"]["deploymentSpec"]["executors"].values()
    assert all("@sha256:" in executor["container"]["image"] for executor in executors)


def test_a_service_and_a_disruption_budget_select_the_pods_they_are_for(prod: list[Object]) -> None:
    templates = list(pod_templates(prod))
    selectors = [(e["metadata"]["name"], e["spec"]["selector"]) for e in prod if e["kind"] == "Service"]
    budgets = [e for e in prod if e["kind"] == "PodDisruptionBudget"]
    selectors += [(each["metadata"]["name"], each["spec"]["selector"]["matchLabels"]) for each in budgets]
    assert len(selectors) == 4
    for name, selector in selectors:
        owners = [t.owner for t in templates if selects({"matchLabels": selector}, t.labels)]
        assert [owner.split()[1] for owner in owners] == [name]


# --- rights --------------------------------------------------------------------------------------------


def test_no_role_has_a_wildcard_and_none_reads_secrets_or_makes_pods(objects: list[Object]) -> None:
    rules = [rule for each in objects if each["kind"] in RBAC for rule in each["rules"]]
    assert rules
    for rule in rules:
        given = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert not [each for each in given if "*" in each], rule
        if rule["apiGroups"] != ["trainer.kubeflow.org"]:
            assert set(rule["verbs"]) <= {"get", "list", "watch"}, rule
        assert not {"secrets", "configmaps", "pods/exec", "serviceaccounts/token"} & set(rule["resources"]), rule


def test_the_role_allows_every_call_that_a_launcher_makes_and_nothing_but_watching_more(
    prod: list[Object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TrainJobSpec(image="i@sha256:" + "a" * 64, nodes=2, gpus_per_node=0, deadline_seconds=60)
    for fake in serve():
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path / "kubeconfig")))
        fake.lives = [["pending", "running", "failed"], ["running", "complete"]]
        pace = {"poll_seconds": 0.02, "patience_seconds": 20.0, "margin_seconds": 30.0}
        with pytest.raises(TrainJobError):
            run_trainjob(spec, "pretrain", "r", ["true"], {}, Reporter("pretrain", None), **pace)
        run_trainjob(spec, "pretrain", "r", ["true"], {}, Reporter("pretrain", None), **pace)
        calls = set(fake.requests)
    calls = {call for call in calls if call[1] != "configmaps"}  # the SDK looks at one, and does without
    roles = [named(prod, "Role", "tenfold-launcher"), named(prod, "ClusterRole", "tenfold-runtimes")]
    granted = {(v, r) for role in roles for rule in role["rules"] for r in rule["resources"] for v in rule["verbs"]}
    assert calls <= granted
    assert {verb for verb, resource in granted - calls if resource == "trainjobs"} <= {"watch", "list"}


def test_the_roles_allow_every_call_that_preflights_look_at_the_cluster_makes_and_nothing_more(
    prod: list[Object], everything: list[Object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = {"resources": [{"name": "nvidia.com/gpu", "nominalQuota": "8"}]}
    for fake in serve():
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path / "kubeconfig")))
        fake.objects["localqueues", "tenfold"] = {"spec": {"clusterQueue": "all"}}
        fake.objects["clusterqueues", "all"] = {"spec": {"resourceGroups": [{"flavors": [queue]}]}}
        node = {"metadata": {"name": "n"}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}}
        fake.objects["nodes", ""] = {"kind": "NodeList", "apiVersion": "v1", "items": [node]}
        needs = Needs(accelerator="nvidia.com/gpu", demands=(Demand(gpus=8, queue="tenfold"),))
        check_capacity(needs, Reporter("preflight", None))
        calls = set(fake.requests)
    assert calls == _granted(everything, "tenfold-read-")
    assert calls - {("list", "nodes")} == _granted(prod, "tenfold-read-")


def _granted(objects: list[Object], prefix: str) -> set[tuple[str, str]]:
    """Return (verb, resource) of the roles with this prefix, and check that default-editor is bound to each."""
    roles = {(e["kind"], e["metadata"]["name"]): e for e in objects if e["kind"] in RBAC}
    roles = {key: role for key, role in roles.items() if key[1].startswith(prefix)}
    bound = {
        (each["roleRef"]["kind"], each["roleRef"]["name"])
        for each in objects
        if each["kind"].endswith("RoleBinding") and "default-editor" in [s["name"] for s in each["subjects"]]
    }
    assert set(roles) <= bound
    rules = [rule for role in roles.values() for rule in role["rules"]]
    return {(verb, resource) for rule in rules for verb in rule["verbs"] for resource in rule["resources"]}


# --- sizes ---------------------------------------------------------------------------------------------


def test_the_job_that_install_md_compiles_fits_kueues_quota_and_leaves_the_namespace_room_for_the_pods_around_it(
    prod: list[Object],
) -> None:
    command = re.search(r"^tenfold compile .*?[^\\\\]$", (ROOT / "docs/install.md").read_text(), re.M | re.S)
    assert command is not None
    words = shlex.split(command[0])
    given = {word: value for word, value in pairwise(words) if word.startswith("--")}
    each = {"cpu": "--cpus-per-node", "memory": "--memory-per-node", "nvidia.com/gpu": "--gpus-per-node"}
    asked = {name: int(given["--nodes"]) * parse_quantity(given[option]) for name, option in each.items()}

    local = named(prod, "LocalQueue", given["--queue"])["spec"]["clusterQueue"]
    (group,) = named(prod, "ClusterQueue", local)["spec"]["resourceGroups"]
    quota = {r["name"]: parse_quantity(r["nominalQuota"]) for r in group["flavors"][0]["resources"]}
    hard = named(prod, "ResourceQuota", "tenfold")["spec"]["hard"]
    for name, amount in asked.items():
        assert amount <= quota[name], name
        assert amount < parse_quantity(hard[f"requests.{name}"]), name
    assert asked["memory"] < parse_quantity(hard["limits.memory"])


# --- training ---------------------------------------------------------------------------------------


def test_the_runtime_has_what_a_trainjob_and_kubeflows_client_look_for(prod: list[Object]) -> None:
    runtime = named(prod, "TrainingRuntime", "tenfold-torch")
    spec = TrainJobSpec(image="i", nodes=2, gpus_per_node=1, deadline_seconds=60, runtime="tenfold-torch")
    job = manifest(spec, "pretrain", "r", ["true"], {}, "TrainingRuntime")["spec"]["runtimeRef"]
    assert (runtime["kind"], runtime["metadata"]["name"]) == (job["kind"], job["name"])
    assert runtime["apiVersion"].partition("/")[0] == job["apiGroup"]
    assert runtime["metadata"]["labels"]["trainer.kubeflow.org/framework"] == "torch"
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["name"] == NODE
    assert replicated["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    pod = replicated["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == NODE
    assert {m["mountPath"] for m in container["volumeMounts"]} == {"/tmp", "/tmp/tenfold", "/dev/shm"}
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    assert volumes["shm"] == {"medium": "Memory", "sizeLimit": "32Gi"}
    home = re.search(r"TENFOLD_HOME=(\S+)", (ROOT / "docker/Dockerfile").read_text())
    assert home is not None
    assert home[1] == next(m["mountPath"] for m in container["volumeMounts"] if m["name"] == "home")


def test_gangs_are_kueues_or_coschedulings(everything: list[Object], prod: list[Object]) -> None:
    assert "podGroupPolicy" not in named(prod, "TrainingRuntime", "tenfold-torch")["spec"]
    gang = named(everything, "TrainingRuntime", "tenfold-torch")["spec"]["podGroupPolicy"]
    assert gang == {"coscheduling": {"scheduleTimeoutSeconds": 600}}
    queue = named(prod, "ClusterQueue", "tenfold")["spec"]
    assert selects(queue["namespaceSelector"], named(prod, "Namespace", "team")["metadata"]["labels"])
    assert named(prod, "LocalQueue", "tenfold")["spec"]["clusterQueue"] == "tenfold"
    (flavor,) = queue["resourceGroups"][0]["flavors"]
    assert named(prod, "ResourceFlavor", flavor["name"])
