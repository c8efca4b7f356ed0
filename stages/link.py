"""One connection to a target through the system's OpenSSH client, and requests over it: nothing but the work folder is left there.

The far end is stages/target_files/agent.py, sent through standard input and run from memory; it ends when the connection does. What comes
back is not trusted: lines are short JSON, payloads are as long as was asked for, texts are made plain before anybody reads them.
"""

import collections
import contextlib
import json
import os
import secrets
import select
import shlex
import shutil
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import BadData, BadStore, Missing, Refused, Stillhouse, Stopped
from pipeline.targets import Target

AGENT = Path(__file__).parent / "target_files/agent.py"
MACHINE = Path(__file__).parent / "machine.py"
LINE = 1 << 20  # bytes of an answer's first line
GREETING = 64 << 10  # bytes that a login shell may print before the agent speaks
CONNECT_S, SILENT_S, SILENCES = 10, 10, 3  # seconds to connect, and between signs of life; how many of these may fail
ANSWER_S = 600  # longest wait for an answer; a build has its own
KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "LANG")  # of the environment: what the client needs
BOOT = (  # runs what arrives; the first line says how many bytes that are
    "import sys;"
    "sys.version_info<(3,9) and sys.exit('Python 3.9 or newer is needed, this is '+sys.version.split()[0]);"
    "sys.path[:1]=[p for p in sys.path[:1] if p];"  # the folder one lands in: a numpy.py there is not numpy
    "i=sys.stdin.buffer;n,a,m=i.readline().split();"
    "exec(compile(i.read(int(a)),'agent','exec'),{'__name__':'agent','NONCE':n.decode(),'MACHINE':i.read(int(m))})"
)
OPTIONS = {
    "BatchMode": "yes",  # never asks
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
    "ConnectTimeout": CONNECT_S,
    "ConnectionAttempts": 1,
    "ServerAliveInterval": SILENT_S,
    "ServerAliveCountMax": SILENCES,
    "PreferredAuthentications": "publickey",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "ControlMaster": "no",
    "ControlPath": "none",
    "EscapeChar": "none",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}


def argv(target: Target) -> list[str]:
    """The ssh client's arguments. No configuration file is read: what targets.yaml says is all there is."""
    options = dict(OPTIONS)
    if target.identity_file:
        options |= {"IdentityFile": target.identity_file, "IdentitiesOnly": "yes"}
    if target.known_hosts:
        options |= {"UserKnownHostsFile": target.known_hosts, "GlobalKnownHostsFile": "/dev/null"}
    given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    command = f"exec {shlex.quote(target.python)} -u -c {shlex.quote(BOOT)}"
    return ["ssh", "-F", "none", "-T", *given, "-p", str(target.port), "-l", target.user, "--", target.host, command]


class Link:
    """`name`: what the target is called in a recipe. `stop`: as Job.stop_asked; it is asked while an answer is waited for."""

    def __init__(self, name: str, target: Target, stop: Callable[[], int] = lambda: 0):
        if shutil.which("ssh") is None:
            raise Missing(f"target {name} is reached through ssh, which is not installed here: install OpenSSH's client")
        self.name, self.target, self.stop = name, target, stop
        environment = {key: os.environ[key] for key in KEPT if key in os.environ}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(argv(target), bufsize=0, env=environment, **pipes)
        self.end = weakref.finalize(self, _end, self.process)
        self.heard, self.complaints, self.doing = bytearray(), collections.deque(maxlen=16), "connecting to"
        self.listener = threading.Thread(target=_listen, args=(self.process.stderr, self.complaints), daemon=True)
        self.listener.start()
        try:
            self._begin()
        except BaseException:
            self.end()
            raise

    def ask(self, what: str, payload: bytes = b"", *, due: int = 0, within: float = ANSWER_S, **given: Any) -> tuple[dict, bytes]:
        """The answer, and its payload of `due` bytes."""
        self.doing = f"asking for {what} of"
        deadline = time.monotonic() + within
        self._send(json.dumps({"ask": what, "bytes": len(payload), **given}).encode() + b"\n" + payload)
        answer = self._answer(deadline)
        if "error" in answer:
            self._told(what, answer)
        count = answer.pop("bytes", None)
        if type(count) is not int or count != due:
            raise self._garbage(f"a payload of {str(count)[:40]} bytes where {due} were due")
        return answer, self._take(count, deadline)

    def _begin(self) -> None:
        nonce, agent, machine = secrets.token_hex(8), AGENT.read_bytes(), MACHINE.read_bytes()
        deadline = time.monotonic() + CONNECT_S + SILENT_S * SILENCES
        self._send(f"{nonce} {len(agent)} {len(machine)}\n".encode() + agent + machine)
        greeting = f"stillhouse {nonce}\n".encode()
        while (at := self.heard.find(greeting)) < 0:
            if len(self.heard) > GREETING:
                raise self._garbage(f"{GREETING} bytes of something else")
            self._hear(deadline)
        del self.heard[: at + len(greeting)]

    def _send(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[self.process.stdin.write(view) :]
        except OSError:  # the other end is gone; why is in what it said
            raise self._lost() from None

    def _answer(self, deadline: float) -> dict[str, Any]:
        while (at := self.heard.find(b"\n")) < 0:
            if len(self.heard) > LINE:
                raise self._garbage("a line without end")
            self._hear(deadline)
        line = bytes(self.heard[:at])
        del self.heard[: at + 1]
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            raise self._garbage("a line that is not JSON") from None
        if not isinstance(answer, dict):
            raise self._garbage("a line that is no object")
        return answer

    def _take(self, count: int, deadline: float) -> bytes:
        while len(self.heard) < count:
            self._hear(deadline)
        taken = bytes(self.heard[:count])
        del self.heard[:count]
        return taken

    def _hear(self, deadline: float) -> None:
        """Adds what arrives next to `heard`."""
        while not select.select([self.process.stdout], [], [], 0.5)[0]:
            if signal := self.stop():
                self.end()
                raise Stopped(f"stopped while {self.doing} target {self.name}; the same command goes on from there", signal)
            if time.monotonic() > deadline:
                self.end()
                raise Missing(f"target {self.name} gives no answer, {self.doing} it: look at that machine, then run the same command again")
        if not (data := os.read(self.process.stdout.fileno(), 1 << 16)):
            raise self._lost()
        self.heard += data

    def _told(self, what: str, answer: dict[str, Any]) -> None:
        text = self.plain(str(answer.get("text", "")), 1100)
        kind = {"lacks": Missing, "storage": BadStore}.get(str(answer["error"]), BadData)
        raise kind(f"target {self.name}, asked for {what}: {text}")

    def _garbage(self, what: str) -> Refused:
        return Refused(f"target {self.name} answers with {what}: it does not speak as it should; look at what its login shell prints")

    def _lost(self) -> Stillhouse:
        """What the end of the connection means, by what the client says of it."""
        self.end()
        self.listener.join(2)
        said = self.plain(b"".join(self.complaints).decode(errors="replace"))
        if "key verification failed" in said or "REMOTE HOST IDENTIFICATION" in said:
            return Refused(
                f"target {self.name}: its host key is not the one in known_hosts, or none is there ({said}). Compare the fingerprint on "
                "that machine (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then put its key into known_hosts"
            )
        again = "see that it runs and is reachable; the same command goes on from what is there"
        return Missing(f"target {self.name}: the connection ended, {self.doing} it ({said or 'without a word'}): {again}")

    def plain(self, text: str, most: int = 400) -> str:
        """One printable line, `most` characters of it, in which the host goes by the target's name: it is nothing to keep in journals."""
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        for private in (f"{self.target.user}@{self.target.host}", self.target.host):
            text = text.replace(private, self.name)
        return text[-most:]


def _end(process: subprocess.Popen) -> None:
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()
    process.kill()
    process.wait()


def _listen(pipe: Any, said: collections.deque) -> None:
    """Keeps the end of what the client and the far end complain about."""
    with contextlib.suppress(OSError, ValueError), pipe:
        while data := pipe.read(512):
            said.append(data)
