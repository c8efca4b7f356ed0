import errno

import pytest

from pipeline import locks, room
from pipeline.errors import BadRecipe, BadStore, Busy, Refused

MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:40 / /home rw - nfs4 server:/home rw
31 30 0:41 / /home/me/my\\040disk rw - xfs /dev/sdb1 rw
32 21 0:42 / /mnt/far rw shared:7 master:2 - fuse.sshfs me@host:/ rw
33 21 0:43 / /mnt/far rw - btrfs /dev/sdc rw
"""


@pytest.fixture
def mounts(tmp_path):
    file = tmp_path / "mountinfo"
    file.write_text(MOUNTS)
    return file


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/x", "ext4"), ("/home/me", "nfs4"), ("/homes", "ext4"), ("/home/me/my disk/store", "xfs"), ("/mnt/far/away", "btrfs")],
)
def test_the_innermost_and_latest_mount_decides(mounts, path, kind):
    from pathlib import Path

    assert room.kind_of_filesystem(Path(path), mounts) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "fuse", "9p", "ceph", "lustre"])
def test_a_network_file_system_is_refused_unless_accepted(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(room, "kind_of_filesystem", lambda path: kind)
    with pytest.raises(BadRecipe, match="--allow-network-fs"):
        room.require_local(tmp_path)
    room.require_local(tmp_path, allowed=True)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuseblk", "unknown"])
def test_a_local_file_system_is_accepted(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(room, "kind_of_filesystem", lambda path: kind)
    room.require_local(tmp_path)


def test_a_stage_does_not_start_without_the_space_it_took_last_time(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda path: 100_000_000)
    room.require_space(tmp_path, 50_000_000)
    with pytest.raises(BadStore, match=r"100 MB free and this stage needs 1\d\d MB"):
        room.require_space(tmp_path, 90_000_000)


def test_a_full_disk_is_told_with_what_is_free_and_the_way_out(tmp_path):
    told = str(room.explained(OSError(errno.ENOSPC, "No space left on device", "/store/x"), tmp_path))
    assert "/store/x" in told and "free in" in told and "store gc --dry-run" in told


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_store_that_others_may_write_to_is_refused_with_what_to_type(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(Refused, match="chmod go-w"):
        room.require_ours(tmp_path)


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (123_456_789, "123 MB"), (2e15, "2000 TB")]
)
def test_sizes_in_words(count, words):
    assert room.size(count) == words


def test_a_lock_names_its_holder_and_is_free_again_afterwards(tmp_path):
    lock = tmp_path / "a.lock"
    with locks.alone(lock, "toy-1", None):
        assert not locks.is_free(lock)
        with pytest.raises(Busy, match="toy-1 \\(process"), locks.alone(lock, "toy-2", None):
            pass
    assert locks.is_free(lock)


def test_many_hold_a_lock_shared_and_one_alone(tmp_path):
    import fcntl
    import os

    def free(how):
        fd = os.open(tmp_path / "s", os.O_RDWR)
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(fd)

    with locks.held(tmp_path / "s", exclusive=False):
        assert free(fcntl.LOCK_SH) and not free(fcntl.LOCK_EX)
    with locks.held(tmp_path / "s", exclusive=True):
        assert not free(fcntl.LOCK_SH)
    assert free(fcntl.LOCK_EX)
