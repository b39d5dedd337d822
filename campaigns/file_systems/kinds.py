"""The file systems of the campaign: how each is made and mounted, and what it needs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

MOUNT_S = 15.0
FAULTY_MOUNT = Path(__file__).with_name("faulty_mount.py")


Disturbances = dict[str, tuple[Callable[[], None], Callable[[], None]]]


class SkippedError(Exception):
    """This machine cannot make the file system; the message says why."""


@dataclass
class Place:
    """A mounted file system.

    Attributes:
        paths: Folders that show the same files; one, or one for each of two machines.
        heal: Removes the fault, so that a run can finish; None if there is none to remove.
        disturbances: Faults that a run is tried with, by name: how each is caused and ended.
    """

    paths: list[Path]
    heal: Callable[[], None] | None = None
    disturbances: Disturbances = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A file system of the campaign.

    Attributes:
        name: Its name in the table.
        mount: Makes and mounts it below a folder, in a context manager.
        expected: Words of the refusal that is expected; empty if the store must work.
        warning: Words of the warning that a run prints, because the promises do not hold for
            several machines there; empty if they must.
    """

    name: str
    mount: Callable[[Path], Iterator[Place]] = field(repr=False)
    expected: str = ""
    warning: str = ""


def command(*words: object, check: bool = True) -> str:
    """Run a command; return its output.

    Raises:
        SkippedError: It is not installed, or fails.
    """
    program = str(words[0])
    if shutil.which(program) is None:
        raise SkippedError(f"{program} is not installed")
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    if check and done.returncode:
        why = (done.stderr or done.stdout).strip().splitlines()
        raise SkippedError(f"{program}: {why[-1] if why else f'exit {done.returncode}'}")
    return done.stdout.strip()


def disturbances(mount_point: Path) -> Disturbances:
    """Return how to make a file system read-only, and how to fill it."""
    ballast = mount_point / "ballast"

    def remount(mode: str) -> None:
        for _ in range(2000):  # busy while a file is open for writing
            words = ["mount", "-o", f"remount,{mode}", mount_point]
            done = subprocess.run(words, capture_output=True, check=False)
            if not done.returncode:
                return
            time.sleep(0.002)
        raise SkippedError(f"{mount_point} cannot be remounted: {done.stderr.decode().strip()}")

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            with suppress(OSError):
                room = os.statvfs(mount_point).f_bavail * os.statvfs(mount_point).f_frsize
                os.posix_fallocate(file.fileno(), 0, max(1, room - 2**20))
            file.seek(0, os.SEEK_END)
            for size in (2**20, 2**16, 2**12):
                with suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    return {
        "read-only": (lambda: remount("ro"), lambda: remount("rw")),
        "full": (fill, ballast.unlink),
    }


def unmount(mount_point: Path) -> None:
    """Unmount, at the latest when the last file is closed."""
    subprocess.run(["umount", "-l", mount_point], capture_output=True, check=False)


def image(
    make: list[str], options: str = "", megabytes: int = 400
) -> Callable[..., Iterator[Place]]:
    """Return how to mount a new file system in a file, through a loop device."""

    def mount(work: Path) -> Iterator[Place]:
        file, mount_point = work / "image", work / "mount"
        command("truncate", "-s", "400M", file)
        command(*make, file)
        mount_point.mkdir()
        command("mount", "-o", "loop", file, mount_point)
        try:
            yield Place([mount_point], disturbances=disturbances(mount_point))
        finally:
            unmount(mount_point)

    return mount


def device_image(make: list[str], mount_words: list[str]) -> Callable[..., Iterator[Place]]:
    """Return how to mount a new file system by a FUSE program that wants a block device."""

    def mount(work: Path) -> Iterator[Place]:
        file, mount_point = work / "image", work / "mount"
        command("truncate", "-s", "400M", file)
        command(*make, file)
        mount_point.mkdir()
        device = command("losetup", "--find", "--show", file)
        try:
            command(*mount_words, device, mount_point)
            yield Place([mount_point])
        finally:
            unmount(mount_point)
            time.sleep(1)
            command("losetup", "-d", device, check=False)

    return mount


def memory(work: Path) -> Iterator[Place]:
    """Mount a small file system in memory."""
    mount_point = work / "mount"
    mount_point.mkdir()
    command("mount", "-t", "tmpfs", "-o", "size=60m", "none", mount_point)
    try:
        yield Place([mount_point], disturbances=disturbances(mount_point))
    finally:
        unmount(mount_point)


def with_quota(work: Path) -> Iterator[Place]:
    """Mount btrfs with a quota for a folder of it; healing removes the quota."""
    mount_point = work / "mount"
    command("truncate", "-s", "400M", work / "image")
    command("mkfs.btrfs", "-q", "-f", work / "image")
    mount_point.mkdir()
    command("mount", "-o", "loop", work / "image", mount_point)
    folder = mount_point / "folder"
    try:
        command("btrfs", "quota", "enable", mount_point)
        command("btrfs", "subvolume", "create", folder)
        command("btrfs", "qgroup", "limit", "4M", folder)
        yield Place(
            [folder],
            heal=lambda: command("btrfs", "qgroup", "limit", "none", folder) and None,
            disturbances=disturbances(mount_point),
        )
    finally:
        unmount(mount_point)


def overlay(work: Path) -> Iterator[Place]:
    """Mount an overlay of two folders, as containers have it."""
    for name in ("lower", "upper", "inner", "mount"):
        (work / name).mkdir()
    options = f"lowerdir={work}/lower,upperdir={work}/upper,workdir={work}/inner"
    command("mount", "-t", "overlay", "-o", options, "none", work / "mount")
    try:
        yield Place([work / "mount"])
    finally:
        unmount(work / "mount")


@contextmanager
def served(words: list[str], mount_point: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that serves a mount in the foreground."""
    mount_point.mkdir(exist_ok=True)
    if shutil.which(words[0]) is None:
        raise SkippedError(f"{words[0]} is not installed")
    log = mount_point.with_name(f"{mount_point.name}.log")
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file)
    end_s = time.monotonic() + MOUNT_S
    try:
        while not mount_point.is_mount():
            if process.poll() is not None or time.monotonic() > end_s:
                lines = log.read_text().strip().splitlines()
                raise SkippedError(f"{words[0]}: {lines[-1] if lines else 'it does not mount'}")
            time.sleep(0.05)
        yield process
    finally:
        unmount(mount_point)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def bound(work: Path) -> Iterator[Place]:
    """Mount a folder again by bindfs, a FUSE file system with hard links that can be killed."""
    (work / "folder").mkdir()
    words = ["bindfs", "-f", str(work / "folder"), str(work / "mount")]
    with ExitStack() as stack:
        process = stack.enter_context(served(words, work / "mount"))

        def mend() -> None:
            unmount(work / "mount")
            stack.enter_context(served(words, work / "mount"))

        yield Place([work / "mount"], disturbances={"killed": (process.kill, mend)})


def rclone(*options: str, machines: int = 1) -> Callable[..., Iterator[Place]]:
    """Return how to mount a folder by rclone, as if it were a bucket."""

    def mount(work: Path) -> Iterator[Place]:
        (work / "folder").mkdir()
        points = [work / f"mount-{i}" for i in range(machines)]
        with ExitStack() as stack:
            for point in points:
                words = ["rclone", "mount", str(work / "folder"), str(point), *options]
                words += ["--cache-dir", f"{point}.cache", "--config", str(work / "none.conf")]
                stack.enter_context(served(words, point))
            yield Place(points)

    return mount


def faulty(*options: str, machines: int = 1, heals: bool = False) -> Callable[..., Iterator[Place]]:
    """Return how to mount a folder with faults (`faulty_mount.py`), once or for two machines."""

    def words(folder: Path, mount_point: Path, faults: tuple[str, ...]) -> list[str]:
        return [sys.executable, str(FAULTY_MOUNT), str(folder), str(mount_point), *faults]

    def mount(work: Path) -> Iterator[Place]:
        if importlib.util.find_spec("mfusepy") is None:
            raise SkippedError("the Python package mfusepy is not installed")
        folder = work / "folder"
        folder.mkdir()
        points = [work / f"mount-{i}" for i in range(machines)]
        with ExitStack() as stack:
            for point in points:
                stack.enter_context(served(words(folder, point, options), point))

            def heal() -> None:
                stack.close()
                for point in points:
                    stack.enter_context(served(words(folder, point, ()), point))

            yield Place(points, heal=heal if heals else None)

    return mount


KINDS = [
    Kind("ext4", image(["mkfs.ext4", "-q"])),
    Kind("xfs", image(["mkfs.xfs", "-q", "-f"])),
    Kind("btrfs", image(["mkfs.btrfs", "-q", "-f"])),
    Kind("vfat", image(["mkfs.vfat"])),
    Kind("exfat (FUSE)", device_image(["mkfs.exfat"], ["mount.exfat-fuse"])),
    Kind("ntfs-3g", device_image(["mkfs.ntfs", "-q", "-F", "-f"], ["ntfs-3g"])),
    Kind("overlay", overlay),
    Kind("bindfs", bound),
    Kind("tmpfs", memory),
    Kind("btrfs with a quota", with_quota),
    Kind("rclone, cache of writes", rclone("--vfs-cache-mode", "writes")),
    Kind("rclone, full cache", rclone("--vfs-cache-mode", "full")),
    Kind("rclone, no cache", rclone(), expected="write a file in any order"),
    *(
        Kind(f"no hard links: {name}", faulty("--no-links", name))
        for name in ("EIO", "ENOSYS", "EPERM", "EOPNOTSUPP", "EMLINK")
    ),
    Kind("no hard links, stale for 2 s", faulty("--no-links", "EIO", "--stale-s", "2")),
    Kind("no hard links, no locks", faulty("--no-links", "EPERM", "--no-locks")),
    Kind("stale for 3 s", faulty("--stale-s", "3")),
    Kind("case is folded", faulty("--fold-case")),
    Kind("times of 2 s, no hard links", faulty("--coarse-times-s", "2", "--no-links", "EPERM")),
    Kind("rename in steps", faulty("--rename-in-steps")),
    Kind("no locks", faulty("--no-locks")),
    Kind("free space is unknown", faulty("--no-size")),
    Kind("sync does nothing", faulty("--no-fsync", "ENOSYS")),
    Kind("short reads and writes", faulty("--short-io")),
    Kind("every 10th read fails", faulty("--read-error-every", "20", heals=True)),
    Kind("full at close", faulty("--full-at-close-mb", "3", heals=True)),
    Kind("sync is refused", faulty("--no-fsync", "EINVAL"), expected="sync a file"),
    Kind("sync fails", faulty("--no-fsync", "EIO"), expected="sync a file"),
    Kind("writes in order only", faulty("--in-order"), expected="write a file in any order"),
    Kind("times are ignored", faulty("--no-times"), expected="set the time of a file"),
    Kind("two machines, stale for 3 s", faulty("--stale-s", "3", machines=2)),
    Kind(
        "two machines, stale for 3 s, no hard links",
        faulty("--stale-s", "3", "--no-links", "EIO", machines=2),
    ),
    Kind(
        "two machines, rclone",
        rclone("--vfs-cache-mode", "writes", machines=2),
        warning="from one machine at a time",
    ),
    Kind(
        "two machines, no hard links, no exclusive creation",
        faulty("--stale-s", "3", "--no-links", "EIO", "--no-exclusive", machines=2),
    ),
]
