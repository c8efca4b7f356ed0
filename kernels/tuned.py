"""Which launch configuration a Triton kernel takes: the one that ships, or the one that was measured to be fastest on this device.

Every kernel ships one configuration for each shape, chosen where it is written: the same on every machine. `python -m kernels.tune`
measures the others that the operation names in its SPACE, {kernel: [configuration, ...]} beside its kernels, and writes what it finds
into a file of the user's cache folder, one for each device. It is read at the first launch there. What it says counts for the same
operation, kernel and key (classes, type and the like, but not the batch) and as long as the operation's source is the one that was
measured. Under torch.use_deterministic_algorithms the shipped configuration is taken, for another tile may add in another order.
"""

import hashlib
import json
import logging
import os
import re
import time
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from kernels import driver

PLACE = ("operation", "kernel", "key")  # what a record is of


def configuration(operation: str, kernel: str, key: tuple, shipped: dict[str, int], device: torch.device) -> dict[str, int]:
    """What to launch a kernel of `operation`, its package, with."""
    place = kernel, ", ".join(map(str, key))
    asked(operation).add(place)
    return shipped if torch.are_deterministic_algorithms_enabled() else measured(operation, device).get(place, shipped)


@cache
def asked(operation: str) -> set[tuple[str, str]]:
    """Every (kernel, key) that was launched in this process: so kernels.tune learns what there is to measure."""
    return set()


@cache
def measured(operation: str, device: torch.device) -> dict[tuple[str, str], dict[str, int]]:
    """{(kernel, key): configuration} for a device. kernels.tune puts into it what it tries."""
    name, space, source = operation.rpartition(".")[2], getattr(import_module(f"{operation}.triton_"), "SPACE", {}), digest(operation)
    of_it = [record for record in stored(device) if record["operation"] == name and record["source"] == source]
    # a record whose configuration is none of the space's, null where the shipped one won, changes nothing
    return {(r["kernel"], r["key"]): config for r in of_it for config in space.get(r["kernel"], ()) if config == r["config"]}


def used(operation: str, device: torch.device) -> str:
    """Which set of configurations is used, for a record of what ran: "shipped" or "tuned"."""
    return "shipped" if torch.are_deterministic_algorithms_enabled() or not measured(operation, device) else "tuned"


@cache
def stored(device: torch.device) -> list[dict[str, Any]]:
    """The records of the device's file: none, and a notice, where it cannot be used."""
    try:
        told, here = json.loads(file(device).read_text(encoding="utf-8")), made(device)
        for name in ("device", "triton"):
            if told[name] != here[name]:
                raise ValueError(f"{name} is {told[name]} there and {here[name]} here")
        for record in told["measured"]:
            if [type(record[name]) for name in (*PLACE, "source")] != [str] * 4 or record["config"] == {}:
                raise ValueError("a record does not say of what it is")
        return told["measured"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        logging.getLogger(__name__).warning(
            "kernels take their shipped configurations: %s cannot be used (%s: %s); python -m kernels.tune writes it anew",
            *(file(device), type(error).__name__, error),
        )
        return []


def store(device: torch.device, records: list[dict[str, Any]]) -> None:
    """Puts records into the device's file, in the place of older ones of the same; whoever reads it sees it whole."""
    new = {tuple(record[name] for name in PLACE) for record in records}
    kept = [record for record in stored(device) if tuple(record[name] for name in PLACE) not in new]
    path = file(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(made(device) | {"measured": kept + records}, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
    stored.cache_clear()


def file(device: torch.device) -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(home if os.path.isabs(home) else os.path.expanduser("~/.cache"))
    return folder / "stillhouse/kernels" / (re.sub(r"[^a-z0-9]+", "-", called(device).lower()).strip("-") + ".json")


def called(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"


def made(device: torch.device) -> dict[str, str]:
    """On what and with what a file is measured."""
    return {
        "device": called(device),
        "triton": import_module("triton").__version__,
        "driver": driver.version() if device.type == "cuda" else "none",
        "date": time.strftime("%Y-%m-%d"),
    }


@cache
def digest(operation: str) -> str:
    """Of an operation's source: what was measured and checked is what runs."""
    files = sorted(Path(import_module(operation).__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
