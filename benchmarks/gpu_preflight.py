"""The preflight on this machine, with the time that each part takes.

python -m benchmarks.gpu_preflight
"""

from __future__ import annotations

from slm_core.health import HealthSpec, check_gpus


def main() -> None:
    for active in (False, True):
        report = check_gpus(HealthSpec(), active=active)
        print(f"active={active} health={report.health} tier={report.tier} {report.seconds:.2f} s")
        for check in report.checks:
            print(f"  {check.health:7} {check.seconds:6.2f} s {check.name}: {check.message[:150]}")


if __name__ == "__main__":
    main()
