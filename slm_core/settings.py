"""Where things are, and the secrets: the only file that reads the environment.

A process builds ``Settings.from_env()`` once and passes plain values down. All problems are
reported together, each naming its variable; an unknown ``SLM_`` variable is a problem too,
because a mistyped one would otherwise do nothing, silently. Secrets never show in ``repr``.
What to do is not a setting but a spec.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
)
from pydantic.fields import FieldInfo

from slm_core.errors import ConfigError
from slm_core.tracing.config import LangfuseConfig

NOT_OURS_TO_READ = frozenset({"SLM_STACK", "SLM_SHARED_DATA"})
"""Set for others to read: the local stack's marker, optional tests."""


class Teacher(NamedTuple):
    """How to reach the hosted model."""

    kind: Literal["azure", "openai"]
    endpoint: str
    """Base address; empty means OpenAI's own."""
    api_key: SecretStr
    api_version: str
    """Azure only."""
    model: str
    """Azure deployment, or model name."""


class SettingDoc(NamedTuple):
    """One row of the settings table."""

    name: str
    default: str
    meaning: str


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _http_address(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    return value.rstrip("/")


def _database_url(value: str) -> str:
    for scheme in ("postgresql://", "postgres://"):
        value = value.replace(scheme, "postgresql+psycopg://", 1)
    if not value.startswith(("sqlite:///", "postgresql+psycopg://")):
        raise ValueError("must start with sqlite:/// or postgresql://")
    return value


def _login(value: SecretStr) -> SecretStr:
    user, colon, password = value.get_secret_value().partition(":")
    if not (user and colon and password):
        raise ValueError("must be user:password")
    return value


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
HttpAddress = Annotated[str, AfterValidator(_http_address)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
Login = Annotated[SecretStr, AfterValidator(_login)]


def _setting(name: str, default: object = None, *, also: str = "", **field: Any) -> Any:
    """A field read from the variable ``name``, or from the older name ``also``."""
    alias = AliasChoices(name, also) if also else name
    if "default_factory" not in field:
        field["default"] = default
    return Field(validation_alias=alias, validate_default=True, **field)


def _derived(shown: str, name: str, factory: Any, **field: Any) -> Any:
    """A setting whose default follows from those above it; ``shown`` describes it."""
    extra = {"shown": shown}
    return _setting(name, default_factory=factory, json_schema_extra=extra, **field)


class Settings(BaseModel):
    """Every setting, with its variable, default and meaning."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )
    _environ: dict[str, str] = PrivateAttr(default_factory=dict)

    home: AbsolutePath = _setting("SLM_HOME", Path(".slm"))
    """Folder for everything that this service writes."""
    database_url: DatabaseUrl = _derived(
        "`sqlite:///{SLM_HOME}/slm.db`",
        "SLM_DATABASE_URL",
        lambda above: f"sqlite:///{above['home']}/slm.db",
        repr=False,
    )
    """The store: SQLite for one process at a time, PostgreSQL for everything else."""
    spool_dir: AbsolutePath = _derived(
        "`{SLM_HOME}/spool`", "SLM_SPOOL_DIR", lambda above: above["home"] / "spool"
    )
    """Where capture leaves calls until `ingest/spool` takes them into the store."""
    assets: AbsolutePath = _derived(
        "`assets` of the repository",
        "SLM_ASSETS",
        lambda _: Path(__file__).parent.parent / "assets",
    )
    """Folder of the two nano models."""

    azure_endpoint: HttpAddress | None = _setting("AZURE_ENDPOINT")
    """Address of the teacher on Azure OpenAI, such as `https://name.openai.azure.com`."""
    azure_api_key: SecretStr | None = _setting("AZURE_API_KEY")
    """Its key."""
    azure_api_version: str = _setting("AZURE_API_VERSION", "2024-10-21")
    """Version of the Azure OpenAI API to speak."""
    openai_base_url: HttpAddress | None = _setting("OPENAI_BASE_URL")
    """Address of any other OpenAI-compatible teacher; read only without `AZURE_ENDPOINT`."""
    openai_api_key: SecretStr | None = _setting("OPENAI_API_KEY")
    """Its key."""
    teacher_model: str = _setting("SLM_TEACHER_MODEL", "nano-teacher")
    """Azure deployment or model name of the teacher."""
    student_model: str = _derived(
        "`{SLM_ASSETS}/nano-student`",
        "SLM_STUDENT_MODEL",
        lambda above: str(above["assets"] / "nano-student"),
    )
    """Folder or hub id of the student's base model."""

    langfuse_public_key: str = _setting("LANGFUSE_PUBLIC_KEY", "")
    """Langfuse project; without it spans are kept in the store and can be sent later."""
    langfuse_secret_key: SecretStr = _setting("LANGFUSE_SECRET_KEY", SecretStr(""))
    """Its secret key."""
    langfuse_base_url: HttpAddress | None = _setting("LANGFUSE_BASE_URL", also="LANGFUSE_HOST")
    """Its address; the older name `LANGFUSE_HOST` is read too."""
    langfuse_timeout_seconds: float = _setting("LANGFUSE_TIMEOUT", 10.0, gt=0)
    """Longest wait for one request to Langfuse, in seconds."""
    langfuse_sample_rate: float = _setting("LANGFUSE_SAMPLE_RATE", 1.0, ge=0, le=1)
    """Share of runs to trace; runs are never sampled, so anything but 1 is reported."""
    langfuse_tracing_enabled: bool = _setting("LANGFUSE_TRACING_ENABLED", True)
    """Langfuse's own off switch."""
    otel_sdk_disabled: bool = _setting("OTEL_SDK_DISABLED", False)
    """OpenTelemetry's off switch; Langfuse obeys it."""
    langfuse_environment: str = _setting("LANGFUSE_TRACING_ENVIRONMENT", "default")
    """Environment that Langfuse shows the runs under."""
    langfuse_release: str | None = _setting("LANGFUSE_RELEASE")
    """Release that Langfuse shows; by default the code's version."""
    require_langfuse: bool = _setting("SLM_REQUIRE_LANGFUSE", False)
    """`1`: a run without a reachable Langfuse refuses to start."""

    hf_token: SecretStr | None = _setting("HF_TOKEN")
    """Token for the Hugging Face hub: gated models and `slm adapters push`."""

    notify_url: SecretStr | None = _setting("SLM_NOTIFY_URL")
    """Address that news is posted to, secret parts and all; read when the project is deployed."""
    server_api_key: SecretStr | None = _setting("SLM_SERVER_API_KEY")
    """Key that `slm serve` asks of its callers."""
    prefect_login: Login | None = _setting(
        "PREFECT_SERVER_API_AUTH_STRING", also="PREFECT_API_AUTH_STRING"
    )
    """`user:password` of the Prefect server that `make up` starts; without it there is no login."""
    retrain_threshold: int = _setting("SLM_RETRAIN_THRESHOLD", 100, ge=1)
    """New usable examples that start a retraining."""
    torch_threads: int | None = _setting("SLM_TORCH_THREADS", ge=1)
    """CPU threads for torch; by default all cores."""
    dask_scheduler: str | None = _setting("SLM_DASK_SCHEDULER")
    """Address of a Dask scheduler for evaluations in shards, such as `tcp://host:8786`; its
    workers see the folders of this machine. By default, processes of this machine."""
    training_usd_per_hour: float | None = _setting("SLM_TRAINING_USD_PER_HOUR", ge=0)
    """Price of the training machine per hour, in US dollars; without it costs stay unknown."""
    kernel_log: AbsolutePath | None = _setting("SLM_KERNEL_LOG")
    """File with the kernel log; by default `/dev/kmsg`, then `journalctl -k`."""
    expected_gpus: int | None = _setting("SLM_EXPECTED_GPUS", ge=0)
    """GPUs that this machine must show; fewer fail its health check."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = _setting("SLM_LOG_LEVEL", "INFO")
    """Least severe log line that is shown."""

    prefect_api_url: HttpAddress | None = _setting("PREFECT_API_URL")
    """Address of the Prefect server's API, for `slm runs` and `slm doctor`."""
    prefect_ui_url: HttpAddress | None = _setting("PREFECT_UI_URL")
    """Address of its dashboard, if that is not the API's without `/api`."""
    prefect_api_auth_string: SecretStr | None = _setting("PREFECT_API_AUTH_STRING")
    """Its login, as `user:password`."""
    do_not_track: bool = _setting("DO_NOT_TRACK", False)
    """`1`: Prefect's library sends no telemetry."""
    repo: AbsolutePath | None = _setting("SLM_REPO")
    """Folder that holds `flows/` where a worker runs; unset where deployments are registered."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from ``environ``, by default the process's; empty means unset.

        Raises:
            ConfigError: with every problem found.
        """
        environ = dict(os.environ if environ is None else environ)
        given: dict[str, str] = {}
        for field in cls.model_fields.values():
            values = [environ[n] for n in _aliases(field) if environ.get(n, "").strip()]
            if values:
                given[_aliases(field)[0]] = values[0]
        problems = [_unknown(name) for name in sorted(environ) if _is_unknown(name)]
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            problems += [
                f"{item['loc'][0]}: {item['msg'].removeprefix('Value error, ')}"
                for item in error.errors()
                if item["type"] != "default_factory_not_called"
            ]
        else:
            if not problems:
                settings._environ = environ
                return settings
        raise ConfigError(
            "The environment does not hold usable settings.", problems=tuple(problems)
        )

    @property
    def gpu_ledger(self) -> Path:
        """What every GPU fault was found to be, one file for all runs of this machine."""
        return self.home / "health" / "ledger.json"

    @property
    def gpu_report(self) -> Path:
        """What the last check of all GPUs of this machine found."""
        return self.home / "health" / "report.json"

    @property
    def names_teacher(self) -> bool:
        """Whether any variable points at a teacher, so that no stand-in is wanted."""
        given = (self.azure_endpoint, self.azure_api_key, self.openai_base_url, self.openai_api_key)
        return any(value is not None for value in given)

    def teacher(self) -> Teacher:
        """Return how to reach the teacher.

        Raises:
            ConfigError: naming every variable that is missing.
        """
        if self.azure_endpoint is None and (self.openai_base_url or self.openai_api_key):
            return Teacher(
                kind="openai",
                endpoint=self.openai_base_url or "",
                api_key=self._required(OPENAI_API_KEY=self.openai_api_key)[0],
                api_version="",
                model=self.teacher_model,
            )
        endpoint, api_key = self._required(
            AZURE_ENDPOINT=self.azure_endpoint, AZURE_API_KEY=self.azure_api_key
        )
        return Teacher("azure", endpoint, api_key, self.azure_api_version, self.teacher_model)

    def langfuse(self) -> LangfuseConfig:
        """Return how to reach Langfuse; its ``problems()`` say what is missing."""
        return LangfuseConfig(
            public_key=self.langfuse_public_key,
            secret_key=self.langfuse_secret_key,
            base_url=self.langfuse_base_url or "",
            timeout_seconds=self.langfuse_timeout_seconds,
            sample_rate=self.langfuse_sample_rate,
            tracing_enabled=self.langfuse_tracing_enabled and not self.otel_sdk_disabled,
            environment=self.langfuse_environment,
            release=self.langfuse_release,
        )

    def child_environment(self) -> dict[str, str]:
        """Return an environment in which a child process finds the same settings.

        Paths are absolute, and Prefect's variables are left out: whoever starts the child
        says which server it talks to.
        """
        inherited = {k: v for k, v in self._environ.items() if not k.startswith("PREFECT_")}
        return inherited | {
            "SLM_HOME": str(self.home),
            "SLM_DATABASE_URL": self.database_url,
            "SLM_SPOOL_DIR": str(self.spool_dir),
            "SLM_ASSETS": str(self.assets),
        }

    @classmethod
    def describe(cls) -> tuple[SettingDoc, ...]:
        """Return name, default and meaning of every setting, as the README shows them."""
        return tuple(
            SettingDoc(
                _aliases(field)[0],
                _shown_default(field),
                " ".join((field.description or "").split()),
            )
            for field in cls.model_fields.values()
        )

    @staticmethod
    def _required(**values: Any) -> tuple[Any, ...]:
        missing = [f"{name} is not set" for name, value in values.items() if value is None]
        if missing:
            raise ConfigError("No teacher can be reached.", problems=tuple(missing))
        return tuple(values.values())


def _aliases(field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    return (
        [str(name) for name in alias.choices] if isinstance(alias, AliasChoices) else [str(alias)]
    )


def _names() -> list[str]:
    return [name for field in Settings.model_fields.values() for name in _aliases(field)]


def _is_unknown(name: str) -> bool:
    return name.startswith("SLM_") and name not in NOT_OURS_TO_READ and name not in _names()


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, _names(), n=1)
    hint = f"did you mean {close[0]}?" if close else "the README lists them all"
    return f"{name} is not a setting; {hint}"


def _shown_default(field: FieldInfo) -> str:
    if isinstance(field.json_schema_extra, dict):
        return str(cast("dict[str, object]", field.json_schema_extra)["shown"])
    default = (
        field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    )
    if isinstance(default, bool):
        default = int(default)
    return "" if default in (None, "") else f"`{default}`"
