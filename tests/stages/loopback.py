"""A real ssh server on loopback, with keys of its own, whose users land on this machine: a target that every test machine has."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from pipeline.targets import Asked, Target

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Server:
    """`start` and `kill` as often as wanted; the port and the keys stay."""

    def __init__(self, folder: Path):
        self.folder, self.port, self.process = folder, free_port(), None
        for name in ("host", "user", "stranger"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copyfile(folder / "user.pub", folder / "authorized")
        self.knows("host")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd of Debian does not start without
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {folder / 'host'}",
            f"AuthorizedKeysFile {folder / 'authorized'}",
        ]
        lines += ["StrictModes no", "UsePAM no", "PasswordAuthentication no", "PidFile none", "PermitRootLogin prohibit-password"]
        (folder / "sshd_config").write_text("\n".join(lines) + "\n")
        self.start()

    def knows(self, key: str) -> None:
        """What the client takes for this server's key."""
        words = (self.folder / f"{key}.pub").read_text().split()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {words[0]} {words[1]}\n")

    def start(self) -> None:
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", self.folder / "sshd_config"], stdout=log, stderr=log)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        raise RuntimeError((self.folder / "sshd.log").read_text())

    def kill(self) -> None:
        """The server and the processes of its connections, and nothing else: what they started must end by itself."""
        for pid in [self.process.pid, *(pid for pid in below(self.process.pid) if name_of(pid) == "sshd")]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def target(self, **fields) -> Target:
        files = {"identity_file": str(self.folder / "user"), "known_hosts": str(self.folder / "known_hosts")}
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        own = {"host": "127.0.0.1", "port": self.port, "user": user, "workdir": str(self.folder / "work"), "python": sys.executable}
        return Target.model_validate(own | files | fields)

    def asked(self, **fields) -> Asked:
        from stages.elsewhere import facts_of

        target = self.target(**fields)
        return Asked(name="device", target=target, facts=facts_of("device", target))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def below(pid: int) -> list[int]:
    """All processes that a process has started, and they in turn."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, more = [], [pid]
    while more:
        more = [child for child, parent in parents.items() if parent in more]
        found += more
    return found


def gone(pids, within=10.0):
    """Whether all these processes end within so many seconds."""
    until = time.monotonic() + within
    while (alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
