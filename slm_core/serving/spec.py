"""What a server may be told, and how an adapter comes to answer real traffic."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from slm_core.prompting.prefix import Variant
from slm_core.records import RiskTier, Track, TrafficLimits


class PromotionSpec(BaseModel):
    """Who lets an adapter answer, and what its traffic must show before each further step."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    risk: RiskTier = RiskTier.HIGH
    """What a wrong answer may cost. Only ``low`` is approved without a person."""
    risk_of: dict[str, RiskTier] = Field(default_factory=dict[str, RiskTier])
    """Tiers of single agents, or of one track of an agent: ``AGENT`` or ``AGENT/TRACK``."""
    approval_days: float = Field(default=7.0, gt=0)
    """How long a request waits for a person; then it is rejected."""
    canary_share: float = Field(default=0.10, gt=0, le=1)
    """Part of the conversations that a canary answers, unless the form says another."""
    limits: TrafficLimits = TrafficLimits()
    """What the traffic must show."""

    def tier(self, agent_name: str, track: Track) -> RiskTier:
        """Return the risk of an agent's calls; the nearest declaration counts."""
        for name in (f"{agent_name}/{track}", agent_name):
            if name in self.risk_of:
                return self.risk_of[name]
        return self.risk


class TeacherSpec(BaseModel):
    """How a gateway reaches the hosted model behind it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["azure", "openai"]
    """Form of its address."""
    endpoint: str
    """Base address: an Azure resource, or a URL that ends in ``/v1``; empty is OpenAI's own."""
    api_key: SecretStr
    """Its key; callers need not know it."""
    api_version: str = ""
    """Azure only."""
    model: str
    """Azure deployment, or model name."""


class ServingSpec(BaseModel):
    """Which model a server gives out, where, and how much it takes on at once."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model_path: str | None = None
    """Folder or hub id of the base model. With routes: replaces the adapters' own base."""
    adapter_path: str | None = None
    """Folder of an adapter of that base model."""
    name: str | None = None
    """Name that callers ask for; by default the base model's folder."""
    cep: Variant | Literal["auto"] | None = "auto"
    """Context prefix; auto is the one that the adapter was trained with, and none without
    an adapter."""
    routes_url: str | None = Field(default=None, repr=False)
    """Store whose live adapters are served, each as AGENT/TRACK, and followed as they change."""
    teacher: TeacherSpec | None = None
    """With routes: be a gateway in front of this model, which answers whatever no adapter does."""
    student_timeout_seconds: float = Field(default=10.0, gt=0)
    """Gateway: how long an adapter may take before the teacher is asked in its place."""
    max_shadow_queue: int = Field(default=32, ge=1)
    """Gateway: answers that may wait to be compared; beyond it they are counted, not compared."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes a free port."""
    api_key: SecretStr | None = None
    """Key that callers must send; None lets everyone in who reaches the port."""
    workers: int | None = Field(default=None, ge=1)
    """Model processes; None takes one per CPU core, at most two."""
    models_per_worker: int = Field(default=4, ge=1)
    """Models that a worker keeps in memory; the one unused for longest leaves first."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU when there is one."""
    max_queue: int = Field(default=64, ge=1)
    """Requests that may wait for a worker; more are refused with status 503."""
    max_body_bytes: int = Field(default=2 * 2**20, ge=1024)
    """Larger requests are refused with status 413."""
    default_max_tokens: int = Field(default=512, ge=1)
    """Longest answer of a request that names no limit."""
    request_timeout_seconds: float = Field(default=120.0, gt=0)
    """Longest time from a request to its whole answer. A gateway's teacher may take longer: it is
    given up only when it is silent for so long, so a stream that flows has no limit."""
    load_timeout_seconds: float = Field(default=900.0, gt=0)
    """Longest time that loading an adapter of a route may take; it is tried again after."""
    shutdown_seconds: float = Field(default=30.0, ge=0)
    """How long a server that was told to stop waits for its answers under way."""

    @model_validator(mode="after")
    def _names_one_source(self) -> Self:
        if self.model_path is None and self.routes_url is None:
            raise ValueError("give model_path, or routes_url to serve the live adapters of a store")
        if self.routes_url is not None and (self.adapter_path or self.name or self.cep != "auto"):
            raise ValueError("adapter_path, name and cep come from the store's routes; leave them")
        if self.teacher is not None and self.routes_url is None:
            raise ValueError("a gateway has a teacher and routes; give routes_url too")
        return self
