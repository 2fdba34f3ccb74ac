"""What a server may be told."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from slm_core.prompting.prefix import Variant


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
    """Longest time from a request to its whole answer."""
    shutdown_seconds: float = Field(default=30.0, ge=0)
    """How long a server that was told to stop waits for its answers under way."""

    @model_validator(mode="after")
    def _names_one_source(self) -> Self:
        if self.model_path is None and self.routes_url is None:
            raise ValueError("give model_path, or routes_url to serve the live adapters of a store")
        if self.routes_url is not None and (self.adapter_path or self.name or self.cep != "auto"):
            raise ValueError("adapter_path, name and cep come from the store's routes; leave them")
        return self
