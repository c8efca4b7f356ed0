"""The one place where the parts meet: the command line gets the stage kinds, the device probe and the page."""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a command without a traceback, from here on; the runner sets its own

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    import kernels
    import stages

    for package in (stages, kernels):
        if Path(package.__file__).resolve().parent.parent != HERE.parent:
            print(
                f"`{package.__name__}` was found at {package.__file__}, not beside {HERE}: another package of that name is in the way. "
                "Run from the folder that holds pipeline/, stages/ and kernels/, in a clean virtual environment.",
                file=sys.stderr,
            )
            return 2

    from pipeline import cli

    judging = {"judge": _judge, "baseline": _baseline, "compare": _compare}
    parts = cli.Parts(stages.KINDS, _has_device, _machine, _page, engine=_engine, kernels=_kernels, ask=_ask, **judging)
    return cli.main(sys.argv[1:], parts)


def _has_device() -> bool:
    from stages.machine import has_device

    return has_device()


def _machine() -> dict:
    from stages.machine import facts

    return facts()


def _engine(folder: Path) -> list:
    from stages.sidecar import examine

    return examine(folder)


def _kernels() -> str:
    from kernels.choose import told

    return told()


def _ask(name: str, target: object) -> dict:
    from stages.elsewhere import facts_of

    return facts_of(name, target)


def _judge(settings: dict, inputs: dict, released: object) -> dict:
    from stages.gate import judged_again

    return judged_again(settings, inputs, released)


def _baseline(settings: dict, inputs: dict, artifacts: dict, lineage: dict) -> dict:
    from stages.baseline import accepted

    return accepted(settings, inputs, artifacts, lineage)


def _compare(story: object, one: dict, two: dict) -> object:
    from stages.compare import compare

    return compare(story, one, two)


def _page(run: dict, artifacts: dict) -> tuple[str, dict]:
    from stages.page import render

    return render(run, artifacts)


if __name__ == "__main__":
    sys.exit(main())
