"""A seeded synthetic workload: tools, requests and right answers, in three disjoint pools.

``pretrain`` made the nano models, ``traffic`` is what the demo's teacher is asked, ``test``
is what every arm is scored on. Tool names, parameter names, argument values (booleans
aside) and phrasings of one pool never occur in another.
"""

from slm_core.testing.workload.generator import (
    FORMAT_LINES,
    agent_name,
    answered,
    generate,
    make_example,
)
from slm_core.testing.workload.pools import POOLS, Pool

__all__ = ["FORMAT_LINES", "POOLS", "Pool", "agent_name", "answered", "generate", "make_example"]
