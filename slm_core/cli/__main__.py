"""``python -m slm_core.cli``: the same as ``slm``."""

from slm_core.cli.app import main

main()
