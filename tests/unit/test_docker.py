"""Tests the files that start containers and clusters: valid where a schema is available, and properly closed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

DOCKER = Path(__file__).parents[2] / "docker"
ROOT = DOCKER.parent
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
KUBERNETES = {
    (file.name, document["kind"]): document
    for file in sorted(DOCKER.glob("kuberay-*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
}


def pods() -> dict[str, dict[str, Any]]:
    """Return every pod template of the Kubernetes files."""
    found = {}
    for (file, kind), document in KUBERNETES.items():
        if kind in ("RayCluster", "RayJob"):
            spec = document["spec"]
            cluster = spec.get("rayClusterSpec", spec)
            found[f"{file} head"] = cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                found[f"{file} {group['groupName']}"] = group["template"]
            if "submitterPodTemplate" in spec:
                found[f"{file} submitter"] = spec["submitterPodTemplate"]
    return found


# --- images ----------------------------------------------------------------------------------------------------------


def locked(name: str) -> dict[str, str]:
    """Return names and versions of a lock file."""
    pattern = r"^([A-Za-z0-9_.\-]+)(?:\[[^\]]*\])?==([^\s\\;]+)"
    found = re.findall(pattern, (DOCKER / "lock" / name).read_text(), re.MULTILINE)
    return {package.lower().replace("_", "-").replace(".", "-"): version for package, version in found}


def test_every_dependency_is_locked_within_its_bounds() -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = locked("base.txt") | locked("torch-cuda.txt")
    for line in [*project["dependencies"], *project["optional-dependencies"]["cluster"]]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(versions[wanted.name.lower()]), line


def test_what_is_locked_is_hashed_and_names_no_place() -> None:
    for name in ("base.txt", "torch-cuda.txt"):
        text = (DOCKER / "lock" / name).read_text()
        entries = re.split(r"\n(?=[A-Za-z0-9])", text.split("\n\n")[-1] if text.startswith("#") else text)
        assert len(entries) > 5
        assert all("--hash=sha256:" in entry for entry in entries if "==" in entry)
        assert "://" not in text
        assert "index" not in text
    cpu, cuda = locked("torch-cpu.txt"), locked("torch-cuda.txt")
    assert cpu == {name: cuda[name] for name in ("torch", "torchvision")}
    assert not locked("base.txt").keys() & cuda.keys()


def test_the_locked_versions_are_those_tested_here() -> None:
    """This covers packages on which numbers depend; a newer version is locked once the tests have run with it."""
    versions = locked("base.txt") | locked("torch-cuda.txt")
    assert versions["ray"] == ray.__version__ or metadata.version("ray") > versions["ray"]
    for name in ("torch", "torchvision", "numpy", "ray", "mlflow", "optuna"):
        assert name in versions


def test_the_image_runs_as_nobody_of_note_and_takes_no_secret() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?", text, re.MULTILINE)
    assert [name for _, name in stages] == ["build", "torch-cuda", "torch-cpu", "packages", ""]
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001$", last, re.MULTILINE)
    assert last.index("USER 10001") > last.index("COPY orchestration")
    assert "HEALTHCHECK" in last
    assert not re.search(r"(?i)(password|token|secret|credential)\s*=", text)
    assert "--require-hashes" in text


def test_an_image_takes_in_what_its_copies_name_and_no_more() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    names = {name.rstrip("/") for line in copied for name in line.split()}
    assert names == allowed
    assert all((ROOT / name).exists() for name in names)


# --- compose ---------------------------------------------------------------------------------------------------------


def test_ports_are_published_to_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"head": ["127.0.0.1:8265:8265"], "mlflow": ["127.0.0.1:5000:5000"]}


def test_there_is_a_head_two_workers_a_tracking_server_a_database_and_a_store() -> None:
    assert set(SERVICES) == {"head", "worker", "mlflow", "database", "store", "bucket"}
    assert SERVICES["worker"]["deploy"]["replicas"] == 2
    for name, service in SERVICES.items():
        assert re.search(r":[\w.$:{}-]+$", service["image"]), f"{name} has no version"
        assert not service["image"].endswith(":latest")
        assert "healthcheck" in service or service["image"].endswith("erat:cpu}"), f"nothing says how {name} is"
        assert "privileged" not in service
    for service in (SERVICES[name] for name in ("head", "worker", "mlflow", "bucket")):
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True


def test_no_secret_stands_in_the_compose_file() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|TOKEN", key):
                assert key.endswith(("_FILE", "_PATH")), f"{name}: {key}"
                assert value.removeprefix("/run/secrets/") in service["secrets"]
    assert {Path(secret["file"]).parent.name for secret in COMPOSE["secrets"].values()} == {"secrets"}
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "docker/secrets/" in ignored


def test_the_tracking_server_knows_its_own_names_alone() -> None:
    command = SERVICES["mlflow"]["command"][0]
    hosts = re.search(r"--allowed-hosts (\S+)", command)
    origins = re.search(r"--cors-allowed-origins (\S+)", command)
    assert hosts is not None
    assert origins is not None
    assert hosts[1].split(",") == ["mlflow:5000", "localhost:5000", "127.0.0.1:5000"]
    assert "*" not in hosts[1] + origins[1]


def test_no_secret_comes_to_a_command_line() -> None:
    """A shell in the container would put an expanded variable where every process of the machine can read it."""
    secret = {
        name.removesuffix("_FILE")
        for service in SERVICES.values()
        for name in service.get("environment", {})
        if name.endswith("_FILE")
    }
    assert "PGPASSWORD" in secret
    for name, service in SERVICES.items():
        words = json.dumps([service.get("entrypoint"), service.get("command")])
        assert not [variable for variable in secret if variable in words], name
        assert "$$" not in words, name
    assert "postgresql+psycopg2://mlflow@database:5432/mlflow" in SERVICES["mlflow"]["command"][0].split()


def test_servers_are_asked_for_before_those_that_need_them() -> None:
    for service in SERVICES.values():
        for name, how in service.get("depends_on", {}).items():
            ends = name == "bucket"
            assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")


# --- Ray's launcher, Kubernetes --------------------------------------------------------------------------------------


def test_the_launcher_s_file_fits_ray_s_own_schema() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    content = yaml.safe_load((DOCKER / "ray-cluster.yaml").read_text())
    jsonschema.validate(content, schema)
    head = " ".join(content["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_AUTH_MODE=token" in " ".join(content["docker"]["run_options"])


def test_the_kubernetes_files_hold_what_they_say() -> None:
    kinds = {kind for _, kind in KUBERNETES}
    assert kinds == {"RayCluster", "RayJob", "PersistentVolumeClaim", "NetworkPolicy"}
    for (_, kind), document in KUBERNETES.items():
        assert document["metadata"]["name"]
        if kind.startswith("Ray"):
            assert document["apiVersion"] == "ray.io/v1"
            spec = document["spec"].get("rayClusterSpec", document["spec"])
            assert spec["rayVersion"] == locked("base.txt")["ray"]
            for group in spec["workerGroupSpecs"]:
                assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    job = KUBERNETES["kuberay-job.yaml", "RayJob"]["spec"]
    assert job["shutdownAfterJobFinishes"] is True
    assert isinstance(yaml.safe_load(job["runtimeEnvYAML"]), dict)


def test_the_autoscaler_may_enter_the_cluster_and_has_bounds() -> None:
    """KubeRay runs it beside the head, in a container that is made from these options."""
    specs = [document["spec"] for (_, kind), document in KUBERNETES.items() if kind.startswith("Ray")]
    clusters = [spec.get("rayClusterSpec", spec) for spec in specs]
    assert len(clusters) == 2
    for cluster in clusters:
        assert cluster["enableInTreeAutoscaling"] is True
        options = cluster["autoscalerOptions"]
        named = {variable["name"]: variable for variable in options["env"]}
        assert named["RAY_AUTH_MODE"]["value"] == "token"
        assert "secretKeyRef" in named["RAY_AUTH_TOKEN"]["valueFrom"]
        assert options["securityContext"]["allowPrivilegeEscalation"] is False
        assert options["resources"]["limits"].keys() == {"cpu", "memory"}
        assert [group["minReplicas"] for group in cluster["workerGroupSpecs"]] == [0], "what is idle costs nothing"


@pytest.mark.parametrize("pod", pods())
def test_pods_run_as_nobody_of_note_with_a_token_and_with_bounds(pod: str) -> None:
    spec = pods()[pod]["spec"]
    assert pods()[pod]["metadata"]["labels"] == {"project": "erat"}
    assert spec["securityContext"]["runAsNonRoot"] is True
    claims = {volume["name"] for volume in spec.get("volumes", [])}
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        names = {variable["name"]: variable for variable in container["env"]}
        assert names["RAY_AUTH_MODE"]["value"] == "token"
        secret = [name for name in names if re.search(r"TOKEN|SECRET|KEY", name)]
        assert secret
        assert all("secretKeyRef" in names[name]["valueFrom"] for name in secret)
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= claims


@pytest.mark.parametrize(
    "command",
    [
        KUBERNETES["kuberay-job.yaml", "RayJob"]["spec"]["entrypoint"].split(),
        # As a user types it after the first lines of the compose file.
        [
            "python",
            "orchestrate.py",
            "sweep",
            "--space",
            "budgets",
            "--address",
            "auto",
            "storage.path=s3://cells/runs",
        ],
    ],
    ids=lambda words: words[1],
)
def test_commands_in_the_files_are_commands(command: list[str]) -> None:
    from erat.config import build
    from orchestration.cli import parse_overrides

    keys = [word for word in command if "=" in word and not word.startswith("-")]
    preset = command[command.index("--preset") + 1] if "--preset" in command else "demo"
    config = build(preset, parse_overrides(keys))
    assert str(config.storage.path).startswith("s3://")


# --- what runs inside ------------------------------------------------------------------------------------------------


def test_secrets_reach_a_command_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a b'c\n")
    here = os.environ | {"SECRETS_FOLDER": str(tmp_path)}
    environment = here | {"SOME_PASSWORD_FILE": str(tmp_path / "secret"), "ELSE_FILE": __file__}
    environment.pop("ELSE", None)
    words = [
        DOCKER / "with-secrets.sh",
        sys.executable,
        "-c",
        "import os; print(repr(os.environ['SOME_PASSWORD']), 'ELSE' in os.environ)",
    ]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == '"a b\'c" False\n', "what is no secret is left alone"
    missing = here | {"SOME_PASSWORD_FILE": str(tmp_path / "nothing")}
    assert subprocess.run(words, env=missing, capture_output=True, check=False).returncode != 0


def test_health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("healthy", DOCKER / "healthy.py")
    assert spec is not None and spec.loader is not None
    healthy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(healthy)
    for name in ("RAY_HEAD", "HEALTH_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ERAT_HOME", str(tmp_path))
    assert healthy.main() is None
    monkeypatch.setenv("HEALTH_URL", "http://127.0.0.1:9/health")
    assert "http://127.0.0.1:9/health: " in healthy.main()
    monkeypatch.delenv("HEALTH_URL")
    monkeypatch.setenv("ERAT_HOME", str(tmp_path / "missing"))
    assert healthy.main() == "ERAT_HOME cannot be written: No such file or directory"
