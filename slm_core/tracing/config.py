"""Where Langfuse is, and with which keys. Built by the settings; tracing reads no environment."""

from __future__ import annotations

from pydantic import Field, SecretStr

from slm_core.records import Record


class LangfuseConfig(Record):
    """How to reach one Langfuse project."""

    public_key: str = ""
    """``LANGFUSE_PUBLIC_KEY``; empty when not set."""
    secret_key: SecretStr = SecretStr("")
    """``LANGFUSE_SECRET_KEY``; empty when not set."""
    base_url: str = ""
    """``LANGFUSE_BASE_URL``, for example ``https://cloud.langfuse.com``."""
    timeout_seconds: float = Field(default=10.0, gt=0)
    """Longest wait for one request, retries of a refused one included."""
    confirm_seconds: float = Field(default=45.0, ge=0)
    """How long to read back after a request whose outcome is unknown. Langfuse shows a span 15
    to 30 seconds after accepting it."""
    sample_rate: float = 1.0
    """``LANGFUSE_SAMPLE_RATE``. Runs are never sampled: less than 1 is refused."""
    tracing_enabled: bool = True
    """``LANGFUSE_TRACING_ENABLED``, and not ``OTEL_SDK_DISABLED``."""
    environment: str = "default"
    """``LANGFUSE_TRACING_ENVIRONMENT``."""
    release: str | None = None
    """``LANGFUSE_RELEASE``, or the code's version."""

    def trace_page(self, trace_id: str) -> str | None:
        """Return the address of a trace's page; None while traces are not sent."""
        return None if self.problems() else f"{self.base_url}/trace/{trace_id}"

    def problems(self) -> tuple[str, ...]:
        """Return every setting that keeps traces from being sent, in words."""
        missing = {
            "LANGFUSE_PUBLIC_KEY": self.public_key,
            "LANGFUSE_SECRET_KEY": self.secret_key.get_secret_value(),
            "LANGFUSE_BASE_URL": self.base_url,
        }
        found = [f"{name} is not set" for name, value in missing.items() if not value]
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            found.append(f"LANGFUSE_BASE_URL is no http(s) address: {self.base_url!r}")
        if self.sample_rate < 1:
            found.append(f"LANGFUSE_SAMPLE_RATE is {self.sample_rate:g}; runs need 1")
        if not self.tracing_enabled:
            found.append("tracing is switched off (LANGFUSE_TRACING_ENABLED, OTEL_SDK_DISABLED)")
        return tuple(found)
