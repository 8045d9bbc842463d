"""What is deployed is what runs here: start command, health check, metric names, and the tools' own verdicts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
REPLICAS = ("replica-1", "replica-2", "replica-3")
SERVERS = ("server", "server-gpu", *REPLICAS)
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))


def instruction(name: str) -> list[str]:
    """The last JSON-form instruction of that name, on the image that is shipped."""
    found: list[str] = json.loads(re.findall(rf"^{name} (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1])
    return found


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def dashboard_queries() -> list[str]:
    return [
        target["expr"]
        for path in DASHBOARDS
        for panel in panels(json.loads(path.read_text()))
        for target in panel.get("targets", [])
    ]


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_the_images_start_command_starts_a_server(models_dir: Path) -> None:
    command = instruction("ENTRYPOINT") + instruction("CMD")
    assert command == [
        "streamcell",
        "serve",
        "--models",
        "/models",
        "--host",
        "0.0.0.0",
        "--port",
        "8500",
        "--metrics-port",
        "9090",
    ]
    # The same command on this machine's folder and on free ports, which come last and so stand.
    with ServerProcess(models_dir, *command[4:], "--port", "0", "--metrics-port", "0") as server:
        with connect(server.target) as client:
            assert client.ready()
        probe = health_command()
        port = server.metrics_url.split("/")[2].rpartition(":")[2]
        assert run_probe(probe, port) == 0
    assert run_probe(probe, port) != 0  # nobody there


def health_command() -> list[str]:
    match = re.search(r"^HEALTHCHECK .*\\\n\s+CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert match is not None
    command: list[str] = json.loads(match[1])
    return command


def run_probe(command: list[str], port: str, **environment: str) -> int:
    program, *arguments = command
    assert program == "python"
    return subprocess.run(
        [sys.executable, *arguments],
        env={"STREAMCELL_METRICS_PORT": port, **environment},
        capture_output=True,
        timeout=120,
    ).returncode


def test_the_image_runs_without_rights_and_reports_to_nobody() -> None:
    final = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert "ORT_DISABLE_TELEMETRY=1" in final
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert "COPY --from=builder" in final
    for tag in re.findall(r"^(?:FROM|ARG PYTHON=)\s*(\S+)", DOCKERFILE, re.MULTILINE):
        assert "latest" not in tag


def _closure(distribution: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> None:
    if (distribution, extras) in seen:
        return
    seen.add((distribution, extras))
    for line in metadata.requires(distribution) or []:
        requirement = Requirement(line)
        environments = [{"extra": extra} for extra in (*extras, "")]
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
            _closure(requirement.name.lower(), frozenset(requirement.extras), seen)


def test_the_serving_image_installs_no_torch() -> None:
    seen: set[tuple[str, frozenset[str]]] = set()
    _closure("streamcell", frozenset({"serve"}), seen)
    names = {name for name, _ in seen}
    assert {"onnxruntime", "grpcio", "numpy"} <= names
    assert not {"torch", "music21", "matplotlib"} & names


def test_the_build_context_is_what_the_image_copies() -> None:
    copied = {
        name
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for name in line.split()[:-1]
    }
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied if name != "README.md")


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_every_service_is_hardened(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
    for port in service.get("ports", ()):
        assert port.startswith("${STREAMCELL_BIND:-127.0.0.1}:")
    if "image" in service:
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        assert "healthcheck" in service
    for secret in service.get("secrets", ()):
        assert COMPOSE["secrets"][secret] == {"file": f"./deploy/secrets/{secret}"}
    for volume in service["volumes"]:
        source, _, mode = volume.rpartition(":")
        assert mode == "ro" or source in COMPOSE["volumes"]
        if source.startswith("./"):
            assert (ROOT / source.split(":")[0]).exists()


def test_the_servers_run_the_images_own_command_and_health_check() -> None:
    from streamcell.service import Settings

    for name in SERVERS:
        service = COMPOSE["services"][name]
        assert not {"command", "entrypoint", "healthcheck"} & set(service)
        assert service["volumes"][0].endswith(":/models:ro")
        settings = {key.removeprefix("STREAMCELL_").lower() for key in service["environment"]}
        assert settings <= set(Settings.model_fields)
        given = {name: str(value) for name, value in service["environment"].items()}
        ends_s = float(given["STREAMCELL_GRACE_S"]) + float(given.get("STREAMCELL_SETTLE_S", 0))
        assert float(service["stop_grace_period"].removesuffix("s")) >= ends_s + 10
    gpu = COMPOSE["services"]["server-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["build"]["args"]["EXTRA"] == "gpu"
    assert gpu["environment"]["STREAMCELL_DEVICE"] == "cuda"
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_the_pod_of_the_security_page_is_hardened_and_set_by_real_settings() -> None:
    from streamcell.service import Settings

    page = (ROOT / "docs" / "security.md").read_text()
    found = [
        yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    ]
    (pod,) = (each for each in found if "containers" in each)
    (policy,) = (each for each in found if each.get("kind") == "NetworkPolicy")
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert re.search(rf"^USER {pod['securityContext']['runAsUser']}:", DOCKERFILE, re.MULTILINE)
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    environment = COMPOSE["services"]["server"]["environment"]
    for each in container["env"]:
        assert each["name"].removeprefix("STREAMCELL_").lower() in Settings.model_fields
        assert each["value"] == environment[each["name"]].replace("/run/secrets", "/secrets")
    assert {mount["name"] for mount in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    ports = [str(port["port"]) for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    assert ports == [instruction("CMD")[-3], instruction("CMD")[-1]]


def test_prometheus_scrapes_the_servers_of_the_compose_file() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    job = next(job for job in config["scrape_configs"] if job["job_name"] == "streamcell")
    assert tuple(job["dns_sd_configs"][0]["names"]) == SERVERS
    # Which of them a figure is of: a dashboard has a row for each.
    assert {"source_labels": ["__meta_dns_name"], "target_label": "replica"} in job["relabel_configs"]
    assert str(job["dns_sd_configs"][0]["port"]) == instruction("CMD")[-1]


@pytest.mark.conformance
def test_every_metric_in_use_is_one_the_server_has(served: ServerProcess) -> None:
    text = served.metrics()
    exposed = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    exposed |= {f"{name}{part}" for name in exposed for part in ("_bucket", "_sum", "_count")}
    page = (ROOT / "docs" / "deploy.md").read_text()
    queries = dashboard_queries() + [rule["expr"] for rule in alert_rules()]
    adapter = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "prometheus-adapter.yaml").read_text())
    queries += [rule["seriesQuery"] for rule in adapter["rules"]]
    assert len(queries) > 30
    used = {name for query in queries for name in re.findall(r"\b(?:streamcell|process)_\w+", query)}
    documented = set(re.findall(r"`((?:streamcell|process)_\w+)`", page))
    assert used - exposed == set()
    assert documented - exposed == set()
    ours = set(re.findall(r"^# TYPE (streamcell_\S+)", text, re.MULTILINE))
    assert ours - documented == set()  # the page lists them all


def test_every_label_in_use_is_one_the_server_has(served: ServerProcess) -> None:
    """Where a family has samples now, a query may match only on the labels that these have."""
    from prometheus_client.parser import text_string_to_metric_families

    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(served.metrics()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels, ("job", "instance", "replica"))
    checked = 0
    for query in dashboard_queries() + [rule["expr"] for rule in alert_rules()]:
        for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", query):
            if name in labels:
                checked += 1
                assert set(re.findall(r"(\w+)\s*=~?", matchers)) <= labels[name], query
    assert checked > 20


def test_every_query_of_the_dashboards_is_promql(tmp_path: Path, program: Callable[[str], str]) -> None:
    queries = [
        re.sub(r"\$(instance|model|replica)", ".+", query.replace("$__rate_interval", "1m"))
        for query in dashboard_queries()
    ]
    rules = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(queries)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    checked = subprocess.run([program("promtool"), "check", "rules", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


def test_the_alerts_fire_and_keep_silent_as_their_tests_say(program: Callable[[str], str]) -> None:
    folder = ROOT / "deploy" / "prometheus"
    checked = subprocess.run(
        [program("promtool"), "test", "rules", "alerts_test.yml"], cwd=folder, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    cases = yaml.safe_load((folder / "alerts_test.yml").read_text())["tests"]
    fired = {
        test["alertname"] for case in cases for test in case["alert_rule_test"] if test.get("exp_alerts")
    }
    silent = {
        test["alertname"] for case in cases for test in case["alert_rule_test"] if not test.get("exp_alerts")
    }
    assert fired == silent == {rule["alert"] for rule in alert_rules()}


def test_the_documentation_names_every_alert() -> None:
    named = re.findall(r"^\| `(StreamCell\w+)` \|", (ROOT / "docs" / "deploy.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(rule["alert"] for rule in alert_rules())


def test_dashboards_find_their_data_source_and_have_no_two_panels_in_one_place() -> None:
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        taken: set[tuple[int, int]] = set()
        ids = [panel["id"] for panel in panels(dashboard)]
        assert len(ids) == len(set(ids)) > 15
        for panel in panels(dashboard):
            box = panel["gridPos"]
            cells = {(box["x"] + i, box["y"] + j) for i in range(box["w"]) for j in range(box["h"])}
            assert not cells & taken, panel["title"]
            assert max(x for x, _ in cells) < 24
            taken |= cells
            if panel["type"] != "row":
                assert panel["datasource"]["uid"] == sources[0]["uid"]
        variables = [variable["name"] for variable in dashboard["templating"]["list"]]
        assert variables == [{"streamcell-cluster": "replica"}.get(path.stem, "instance"), "model"]
    assert [path.stem for path in DASHBOARDS] == ["streamcell-cluster", "streamcell"]
