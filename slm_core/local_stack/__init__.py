"""What `make up` runs on this machine: PostgreSQL, a Prefect server, its workers, a teacher."""

from slm_core.local_stack.stack import LocalStack, PartStatus

__all__ = ["LocalStack", "PartStatus"]
