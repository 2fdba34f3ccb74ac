"""Settings: one reading of the environment, all problems at once, no secret shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm_core.errors import ConfigError
from slm_core.settings import Settings

AZURE = {"AZURE_ENDPOINT": "https://name.openai.azure.com/", "AZURE_API_KEY": "s3cret"}


def test_an_empty_environment_is_usable() -> None:
    settings = Settings.from_env({})
    assert settings.home == Path.cwd() / ".slm"
    assert settings.database_url == f"sqlite:///{settings.home}/slm.db"
    assert settings.spool_dir == settings.home / "spool"
    assert settings.student_model == str(settings.assets / "nano-student")
    assert settings.retrain_threshold == 100
    assert not settings.names_teacher


def test_defaults_follow_the_settings_above_them(tmp_path: Path) -> None:
    settings = Settings.from_env({"SLM_HOME": str(tmp_path), "SLM_ASSETS": "/models"})
    assert settings.database_url == f"sqlite:///{tmp_path}/slm.db"
    assert settings.student_model == "/models/nano-student"


def test_an_empty_variable_is_an_unset_one() -> None:
    settings = Settings.from_env({"AZURE_ENDPOINT": "", "SLM_TORCH_THREADS": " "})
    assert settings.azure_endpoint is None
    assert settings.torch_threads is None


def test_all_problems_are_listed_together_by_variable() -> None:
    environ = {
        "SLM_RETRAIN_THRESHOLD": "0",
        "SLM_LOG_LEVEL": "loud",
        "AZURE_ENDPOINT": "name.openai.azure.com",
        "SLM_DATABASE_URL": "mysql://user:s3cret@host/db",
        "SLM_REQUIRE_LANGFUS": "1",
    }
    with pytest.raises(ConfigError) as caught:
        Settings.from_env(environ)
    problems = caught.value.problems
    assert {problem.split(":")[0].split()[0] for problem in problems} == set(environ)
    assert len(problems) == len(environ)
    assert "did you mean SLM_REQUIRE_LANGFUSE?" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_secrets_do_not_show() -> None:
    environ = AZURE | {
        "LANGFUSE_SECRET_KEY": "s3cret",
        "OPENAI_API_KEY": "s3cret",
        "SLM_SERVER_API_KEY": "s3cret",
        "SLM_DATABASE_URL": "postgresql://user:s3cret@host/db",
    }
    settings = Settings.from_env(environ)
    assert "s3cret" not in f"{settings!r} {settings} {settings.teacher()!r} {settings.langfuse()!r}"


def test_the_teacher_on_azure() -> None:
    teacher = Settings.from_env(AZURE | {"SLM_TEACHER_MODEL": "gpt"}).teacher()
    assert teacher.kind == "azure"
    assert teacher.endpoint == "https://name.openai.azure.com"
    assert teacher.api_key.get_secret_value() == "s3cret"
    assert teacher.model == "gpt"


def test_the_teacher_elsewhere() -> None:
    environ = {"OPENAI_BASE_URL": "http://localhost:8000/v1", "OPENAI_API_KEY": "k"}
    teacher = Settings.from_env(environ).teacher()
    assert (teacher.kind, teacher.endpoint) == ("openai", "http://localhost:8000/v1")


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({}, ["AZURE_ENDPOINT", "AZURE_API_KEY"]),
        ({"AZURE_ENDPOINT": "https://x"}, ["AZURE_API_KEY"]),
        ({"AZURE_API_KEY": "k"}, ["AZURE_ENDPOINT"]),
        ({"OPENAI_BASE_URL": "https://x"}, ["OPENAI_API_KEY"]),
    ],
)
def test_a_teacher_that_cannot_be_reached_names_every_missing_variable(
    environ: dict[str, str], missing: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_env(environ).teacher()
    assert [problem.split()[0] for problem in caught.value.problems] == missing


def test_the_older_name_of_the_langfuse_address_is_read_and_the_newer_one_wins() -> None:
    old = {"LANGFUSE_HOST": "http://old"}
    assert Settings.from_env(old).langfuse().base_url == "http://old"
    both = old | {"LANGFUSE_BASE_URL": "http://new"}
    assert Settings.from_env(both).langfuse().base_url == "http://new"


def test_opentelemetrys_switch_turns_tracing_off() -> None:
    assert Settings.from_env({}).langfuse().tracing_enabled
    assert not Settings.from_env({"OTEL_SDK_DISABLED": "true"}).langfuse().tracing_enabled


def test_postgresql_is_reached_through_psycopg_3() -> None:
    settings = Settings.from_env({"SLM_DATABASE_URL": "postgres://u:p@h:5432/slm"})
    assert settings.database_url == "postgresql+psycopg://u:p@h:5432/slm"


def test_a_child_process_finds_the_same_settings_wherever_it_runs() -> None:
    environ = AZURE | {"SLM_HOME": "here", "PREFECT_API_URL": "http://other", "PATH": "/bin"}
    settings = Settings.from_env(environ)
    child = settings.child_environment()
    assert child["SLM_HOME"] == str(Path.cwd() / "here")
    assert child["PATH"] == "/bin"
    assert not any(name.startswith("PREFECT_") for name in child)
    # Whoever starts the child says which Prefect server it talks to.
    prefect = {"prefect_api_url", "prefect_api_auth_string", "prefect_login"}
    same = Settings.from_env(child).model_dump(exclude=prefect)
    assert same == settings.model_dump(exclude=prefect)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.from_env({}).retrain_threshold = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_every_setting_is_described_once() -> None:
    rows = Settings.describe()
    assert len({row.name for row in rows}) == len(rows) == len(Settings.model_fields)
    assert all(row.meaning for row in rows)
    shown = {row.name: row.default for row in rows}
    assert shown["SLM_RETRAIN_THRESHOLD"] == "`100`"
    assert shown["SLM_SPOOL_DIR"] == "`{SLM_HOME}/spool`"
    assert shown["AZURE_API_KEY"] == ""


@pytest.mark.parametrize("login", ["nobody", ":password", "user:"])
def test_a_login_is_a_user_and_a_password(login: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Settings.from_env({"PREFECT_SERVER_API_AUTH_STRING": login})
    assert "PREFECT_SERVER_API_AUTH_STRING: must be user:password" in str(raised.value)
    assert Settings.from_env({"PREFECT_API_AUTH_STRING": "u:p:q"}).prefect_login is not None
