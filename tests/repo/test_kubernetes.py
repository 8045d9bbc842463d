"""The Kubernetes files: kustomize builds them, Kubernetes takes them, and what they say is what the server has."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from streamcell.service import Settings
from tests.repo.test_deploy import instruction
from tests.support.kserve_schema import SCHEMAS
from tests.support.routing_files import endpoints, read

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
RUNNING = [name for name in OVERLAYS if name != "kserve"]
# The oldest that has all fields in use, and the newest that is known.
VERSIONS = ("1.29", kubernetes_validate.latest_version())

overlays = pytest.mark.parametrize("overlay", OVERLAYS)
running = pytest.mark.parametrize("overlay", RUNNING)
Built = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def built(program: Callable[[str], str]) -> Built:
    """The objects that an overlay makes."""

    @lru_cache
    def build(overlay: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [program("kubectl"), "kustomize", FOLDER / "overlays" / overlay], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # nothing deprecated
        return list(yaml.safe_load_all(done.stdout))

    return build


def of(objects: list[dict[str, Any]], kind: str, name: str = "streamcell") -> dict[str, Any]:
    (found,) = (
        each for each in objects if each["kind"] == kind and each["metadata"]["name"].startswith(name)
    )
    return found


def workloads(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for each in objects:
        if each["kind"] in ("Deployment", "StatefulSet"):
            yield each


def replicas(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (each for each in workloads(objects) if each["metadata"]["name"] == "streamcell")
    return found


def pod(objects: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The replicas' pod and its only container; KServe's are spread over two objects."""
    if any(each["kind"] == "ServingRuntime" for each in objects):
        runtime, service = of(objects, "ServingRuntime"), of(objects, "InferenceService", "")
        specification = {**runtime["spec"], **service["spec"]["predictor"]}
        return specification, runtime["spec"]["containers"][0]
    specification = replicas(objects)["spec"]["template"]["spec"]
    (container,) = specification["containers"]
    return specification, container


def as_pod(given: dict[str, Any]) -> dict[str, Any]:
    """What Kubernetes itself has to take of an object of KServe's: the pod that it becomes."""
    specification = given["spec"]
    if given["kind"] == "InferenceService":
        specification = {
            k: v for k, v in specification["predictor"].items() if k not in ("model", "minReplicas")
        }
        specification["containers"] = [{"name": "kserve-container"}]
    else:
        specification = {k: specification[k] for k in ("containers", "volumes")}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": specification}


def test_the_overlays_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    rows = page.partition("| overlay | |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", rows, re.MULTILINE)) == OVERLAYS


@overlays
def test_kubernetes_takes_every_object(built: Built, overlay: str) -> None:
    objects = built(overlay)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names)) > 1
    for each in objects:
        if each["apiVersion"].startswith("serving.kserve.io/"):
            jsonschema.validate(each, SCHEMAS[each["kind"], each["apiVersion"]])
            each = as_pod(each)
        for version in VERSIONS:
            kubernetes_validate.validate(each, version, strict=True)


def test_a_field_that_does_not_exist_is_noticed(built: Built) -> None:
    """The mutant of the test above, of both kinds of schemas."""
    for each in built("statefulset"):
        if "spec" in each:
            wrong = {**each, "spec": {**each["spec"], "maxUnavailabel": 1}}
            with pytest.raises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)
    for each in built("kserve"):
        wrong = {**each, "spec": {**each["spec"], "protocolVersion": "grpc-v2"}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMAS[each["kind"], each["apiVersion"]])


@overlays
def test_every_variable_is_a_setting_with_a_value_that_it_takes(built: Built, overlay: str) -> None:
    _, container = pod(built(overlay))
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert len(variables) == len(container["env"])
    given = {name.removeprefix("STREAMCELL_").lower(): value for name, value in variables.items()}
    assert set(given) <= set(Settings.model_fields)
    # All of them together, too: `models` is a flag of the start command.
    Settings(models=Path("/models"), **given)  # type: ignore[arg-type]


@overlays
def test_the_end_of_a_pod_leaves_time_for_its_streams(built: Built, overlay: str) -> None:
    specification, container = pod(built(overlay))
    variables = {each["name"]: each["value"] for each in container["env"]}
    settle_s, grace_s = (float(variables[f"STREAMCELL_{name}_S"]) for name in ("SETTLE", "GRACE"))
    assert specification["terminationGracePeriodSeconds"] >= settle_s + grace_s + 10
    # Whoever asks for readiness has noticed the drain before the replica refuses sessions.
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < settle_s


@overlays
def test_every_container_has_no_rights_and_a_limit(built: Built, overlay: str) -> None:
    objects = built(overlay)
    specifications = [each["spec"]["template"]["spec"] for each in workloads(objects)] or [pod(objects)[0]]
    for specification in specifications:
        assert specification["automountServiceAccountToken"] is False
        assert specification["enableServiceLinks"] is False
        for container in specification["containers"]:
            context = {**specification.get("securityContext", {}), **container["securityContext"]}
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["runAsNonRoot"] is True
            assert context["runAsUser"] > 0
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert re.search(r":v?\d+\.\d+\.\d+(-gpu)?$", container["image"])
            assert {"livenessProbe", "readinessProbe"} <= set(container)
        mounted = {each["name"] for c in specification["containers"] for each in c["volumeMounts"]}
        made = {each["metadata"]["name"] for each in replicas(objects)["spec"].get("volumeClaimTemplates", ())} \
            if overlay != "kserve" else set()  # fmt: skip
        assert mounted - made <= {each["name"] for each in specification["volumes"]}


@running
def test_the_pod_runs_the_images_own_command_as_its_own_user(built: Built, overlay: str) -> None:
    specification, container = pod(built(overlay))
    assert not {"command", "args"} & set(container)
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert f"USER {specification['securityContext']['runAsUser']}:" in dockerfile
    ports = {each["name"]: str(each["containerPort"]) for each in container["ports"]}
    assert ports == {"grpc": instruction("CMD")[-3], "metrics": instruction("CMD")[-1]}


@running
def test_services_policies_and_budgets_select_the_pods_that_they_mean(built: Built, overlay: str) -> None:
    objects = built(overlay)
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in workloads(objects)
    }
    services = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "Service"}
    assert services["streamcell"]["selector"] == labels["streamcell-envoy"]
    assert services["streamcell-replicas"]["selector"] == labels["streamcell"]
    assert services["streamcell-replicas"]["clusterIP"] == "None"
    for kind in ("NetworkPolicy", "PodDisruptionBudget"):
        selectors = {
            each["metadata"]["name"]: (each["spec"].get("podSelector") or each["spec"]["selector"])[
                "matchLabels"
            ]
            for each in objects
            if each["kind"] == kind
        }
        assert selectors == labels
    for each in objects:
        if each["kind"] == "PodDisruptionBudget":
            assert each["spec"]["maxUnavailable"] == 1
        if each["kind"] == "NetworkPolicy":
            assert each["spec"]["policyTypes"] == ["Ingress", "Egress"]
            # Nothing is open to everybody.
            assert all(rule["from"] for rule in each["spec"]["ingress"])
    opened = {
        port["port"]
        for each in objects
        if each["kind"] == "NetworkPolicy"
        for rule in each["spec"]["ingress"]
        for port in rule["ports"]
    }
    assert opened == {8500, 9090}


@running
def test_envoy_gets_its_file_and_finds_the_replicas(built: Built, overlay: str) -> None:
    objects = built(overlay)
    envoy = of(list(workloads(objects)), "Deployment", "streamcell-envoy")["spec"]["template"]["spec"]
    configuration = of(objects, "ConfigMap", "streamcell-envoy")
    named = {each["name"]: each for each in envoy["volumes"]}
    assert named["configuration"]["configMap"]["name"] == configuration["metadata"]["name"]
    config = yaml.safe_load(configuration["data"]["envoy.yaml"])
    folder = {"gpu": "store"}.get(overlay, overlay)
    assert config == read(FOLDER / "overlays" / folder / "envoy.yaml")
    headless = "streamcell-replicas"
    workload = replicas(objects)
    if workload["kind"] == "StatefulSet":
        assert workload["spec"]["serviceName"] == headless
        names = [f"streamcell-{number}" for number in range(workload["spec"]["replicas"])]
        assert endpoints(config) == [(f"{name}.{headless}", 8500, name) for name in names]
    else:
        assert endpoints(config) == [(headless, 8500, None)]


def test_the_statefulset_keeps_its_journal_on_the_volume(built: Built) -> None:
    workload = replicas(built("statefulset"))
    _, container = pod(built("statefulset"))
    variables = {each["name"]: each["value"] for each in container["env"]}
    (mount,) = (
        each for each in container["volumeMounts"] if each["mountPath"] == variables["STREAMCELL_JOURNAL_DIR"]
    )
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == mount["name"]
    assert workload["spec"]["persistentVolumeClaimRetentionPolicy"]["whenScaled"] == "Retain"


def test_kserve_reaches_the_grpc_port_and_the_models(built: Built) -> None:
    runtime, service = of(built("kserve"), "ServingRuntime"), of(built("kserve"), "InferenceService", "")
    (container,) = runtime["spec"]["containers"]
    model = service["spec"]["predictor"]["model"]
    assert container["name"] == "kserve-container"
    assert model["runtime"] == runtime["metadata"]["name"]
    assert [model["protocolVersion"]] == runtime["spec"]["protocolVersions"] == ["grpc-v2"]
    assert model["modelFormat"]["name"] in {each["name"] for each in runtime["spec"]["supportedModelFormats"]}
    arguments = container["args"]
    flags = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert arguments[0] == "serve"
    assert {flag.removeprefix("--").replace("-", "_") for flag in flags} <= set(Settings.model_fields)
    assert flags["--models"] == "/mnt/models"
    assert container["ports"] == [{"name": "h2c", "containerPort": int(flags["--port"]), "protocol": "TCP"}]
    assert container["readinessProbe"]["grpc"]["port"] == int(flags["--port"])
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == flags["--metrics-port"]
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "RawDeployment"


def test_the_autoscaler_asks_for_what_the_adapter_gives(built: Built) -> None:
    objects = built("store")
    scaler = of(objects, "HorizontalPodAutoscaler")["spec"]
    target = replicas(objects)
    assert (scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"]) == (
        target["kind"],
        "streamcell",
    )
    assert "replicas" not in target["spec"]  # else each `kubectl apply` would undo what the autoscaler did
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]
    (metric,) = scaler["metrics"]
    assert re.fullmatch(rule["name"]["matches"], metric["pods"]["metric"]["name"])
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    assert rule["seriesQuery"].startswith(metric["pods"]["metric"]["name"] + "{")
    _, container = pod(objects)
    (room,) = (each["value"] for each in container["env"] if each["name"] == "STREAMCELL_MAX_SESSIONS")
    # If one of the fewest is lost, the others have room for its sessions.
    wanted = int(metric["pods"]["target"]["averageValue"])
    assert math.ceil(wanted * scaler["minReplicas"] / (scaler["minReplicas"] - 1)) <= int(room)
