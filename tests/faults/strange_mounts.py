"""Stores on file systems of all kinds, told by a mountinfo that is none of the kernel's."""

import subprocess
import sys
from pathlib import Path

from common import PATIENCE
from strange import copied, ended, untouched

from pipeline import room

NETWORK = (
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "ocfs2", "gfs2", "ncpfs"),
    *("fuse", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.glusterfs", "fuse.ceph-fuse", "fuse.davfs2"),
)
LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "ramfs", "overlay", "zfs", "f2fs", "bcachefs", "vfat", "fuseblk", "unheard-of")
ROOTS = "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
# What mountinfo says, the folder asked for, and the kind that is right.
MOUNTS = {
    "the root alone": ("", "/data/store", "ext4"),
    "an inner mount": ("30 21 0:40 / /data rw - nfs4 server:/ rw\n", "/data/store", "nfs4"),
    "the mount itself": ("30 21 0:40 / /data/store rw - nfs server:/ rw\n", "/data/store", "nfs"),
    "a name that only begins alike": ("30 21 0:40 / /data/sto rw - nfs4 server:/ rw\n", "/data/store", "ext4"),
    "nested, local inside": (
        "30 21 0:40 / /data rw - nfs4 server:/ rw\n31 30 0:41 / /data/disk rw - xfs /dev/sdb rw\n",
        "/data/disk/store",
        "xfs",
    ),
    "nested, network inside": (
        "30 21 0:40 / /data rw - xfs /dev/sdb rw\n31 30 0:41 / /data/far rw - cifs //host/share rw\n",
        "/data/far/store",
        "cifs",
    ),
    "inner told before outer": (
        "31 30 0:41 / /data/far rw - cifs //host/share rw\n30 21 0:40 / /data rw - xfs /dev/sdb rw\n",
        "/data/far/store",
        "cifs",
    ),
    "one over the other": ("30 21 0:40 / /data rw - nfs4 server:/ rw\n31 30 0:41 / /data rw - ext4 /dev/sdb rw\n", "/data/x", "ext4"),
    "a blank in the name": ("30 21 0:40 / /my\\040data rw - nfs4 server:/ rw\n", "/my data/store", "nfs4"),
    "a tab in the name": ("30 21 0:40 / /my\\011data rw - nfs4 server:/ rw\n", "/my\tdata/store", "nfs4"),
    "a newline in the name": ("30 21 0:40 / /my\\012data rw - nfs4 server:/ rw\n", "/my\ndata/store", "nfs4"),
    "a backslash in the name": ("30 21 0:40 / /my\\134040data rw - nfs4 server:/ rw\n", "/my\\040data/store", "nfs4"),
    "a dash in the name": ("30 21 0:40 / /my\\040-\\040data rw - nfs4 server:/ rw\n", "/my - data/store", "nfs4"),
    "letters beyond ASCII": ("30 21 0:40 / /d\u00e9p\u00f4t rw - nfs4 server:/ rw\n", "/d\u00e9p\u00f4t/store", "nfs4"),
    "a blank that is none of ASCII": ("30 21 0:40 / /my\u00a0data rw - nfs4 server:/ rw\n", "/my\u00a0data/store", "nfs4"),
    "a line end that is none of ASCII": ("30 21 0:40 / /my\u2028data rw - nfs4 server:/ rw\n", "/my\u2028data/store", "nfs4"),
    "bytes that are no text": ("30 21 0:40 / /my\udcffdata rw - nfs4 server:/ rw\n", "/my\udcffdata/store", "nfs4"),
    "several optional fields": ("30 21 0:40 / /data rw shared:7 master:2 propagate_from:1 - nfs4 server:/ rw\n", "/data/x", "nfs4"),
    "no optional field": ("30 21 0:40 / /data rw - nfs4 server:/ rw\n", "/data/x", "nfs4"),
    "a part of a file system": ("30 21 0:40 /home/me /data rw - nfs4 server:/home rw\n", "/data/x", "nfs4"),
    "no such file": (None, "/data/store", "unknown"),
    "an empty line": ("\n30 21 0:40 / /data rw - nfs4 server:/ rw\n", "/data/store", "nfs4"),
}


def cases():
    return [*(f"network/{kind}" for kind in NETWORK), *(f"local/{kind}" for kind in LOCAL), *(f"mountinfo/{case}" for case in MOUNTS)]


def check(group, what, place):
    if group == "mountinfo":
        mountinfo(place, *MOUNTS[what])
    else:
        (network if group == "network" else local)(place, what)


def mountinfo(place, lines, folder, kind):
    file = place / "mountinfo"
    if lines is not None:
        file.write_bytes((ROOTS + lines).encode("utf-8", "surrogateescape"))
    found = room.kind_of_filesystem(Path(folder), file)
    assert found == kind, f"taken for {found}, is {kind}"


FAKED = """
import functools, runpy, sys
from pathlib import Path
from pipeline import room
room.kind_of_filesystem = functools.partial(room.kind_of_filesystem, mounts=Path(sys.argv.pop(1)))
sys.argv[0] = sys.argv.pop(1)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def told(place, toy, kind):
    """The command line where the kernel says that the store lies on such a file system. Returns how to call it."""
    mounts = place / "mountinfo"
    mounts.write_text(f"{ROOTS}30 21 0:40 / {toy.store} rw - {kind} source rw\n")

    def call(*arguments):
        command = [sys.executable, "-c", FAKED, mounts, toy.main, *arguments]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, cwd=place, env=toy.environment, timeout=PATIENCE, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return call


def network(place, kind):
    toy = copied(place)
    runner = told(place, toy, kind)
    with untouched(toy.store):
        ended(toy, 2, *toy.run_arguments(), words=(f"({kind})", "--allow-network-fs", str(toy.store)), runner=runner)
        ended(toy, 2, "store", "gc", words=("--allow-network-fs",), runner=runner)
    ended(toy, 0, *toy.run_arguments(), "--allow-network-fs", words=("kept",), runner=runner)


def local(place, kind):
    toy = copied(place)
    ended(toy, 0, *toy.run_arguments(), words=("kept",), runner=told(place, toy, kind))
