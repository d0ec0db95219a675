"""Artifacts in a folder: links, killed writers, full disks, permissions, power cuts."""

import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from broll.errors import StorageError
from broll.jobs.artifacts import Artifacts

CLIP = "job_01k8/clip.mp4"


def test_a_folder_is_made_for_its_owner_only(tmp_path):
    artifacts = Artifacts.open(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert artifacts.where == str(tmp_path / "a" / "b")


def test_a_folder_may_be_opened_over_a_link_and_from_two_sides(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    Artifacts.open(str(tmp_path / "link")).put(CLIP, b"x")
    assert Artifacts.open(str(tmp_path / "disk")).get(CLIP) == b"x"


def test_no_link_leads_out_of_the_folder(folder, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    root = Path(folder.where)
    (root / "file").symlink_to(tmp_path / "outside" / "secret")
    (root / "job").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    for path in ("file", "job/secret", "job/new", "loop/job/secret", "loop/x"):
        for attempt in (
            lambda path=path: folder.get(path),
            lambda path=path: folder.size(path),
            lambda path=path: folder.exists(path),
            lambda path=path: folder.read(path, 0, 1),
            lambda path=path: folder.put(path, b"x"),
            lambda path=path: folder.delete(path),
            lambda path=path: folder.delete_below(path),
        ):
            with pytest.raises(StorageError, match="links are not followed"):
                attempt()
    assert folder.list_below("") == []
    assert [file.name for file in (tmp_path / "outside").iterdir()] == ["secret"]
    assert (tmp_path / "outside" / "secret").read_bytes() == b"secret"


def test_the_name_of_a_file_being_written_is_no_way_out_either(folder, tmp_path):
    (Path(folder.where) / "clip#1").symlink_to(tmp_path / "outside")
    folder.put("clip", b"x")
    assert folder.get("clip") == b"x"
    assert not (tmp_path / "outside").exists()


def test_empty_directories_are_cleared_away(folder):
    folder.put("tenant/job/clip", b"x")
    folder.delete("tenant/job/clip")
    assert list(Path(folder.where).iterdir()) == []


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import sys\nfrom broll.errors import *\nfrom broll.jobs.artifacts import Artifacts\n"
    return subprocess.run(
        [sys.executable, "-c", program + textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_writer_that_is_killed_leaves_the_old_artifact_and_nothing_to_see(folder):
    folder.put(CLIP, b"old")
    code = "from broll.jobs.artifacts import Artifacts; import sys; a = Artifacts.open(sys.argv[1])\n"
    code += f"data = b'x' * 200_000_000\nprint(1, flush=True)\na.put({CLIP!r}, data)"
    staged = Path(folder.where) / f"{CLIP}#1"
    with subprocess.Popen([sys.executable, "-c", code, folder.where], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        while not (staged.exists() and staged.stat().st_size) and writer.poll() is None:
            pass
        writer.send_signal(signal.SIGKILL)
    assert staged.exists(), "it was written before it could be killed"
    assert folder.get(CLIP) == b"old"
    assert folder.list_below("") == [CLIP]
    folder.put(CLIP, b"new")
    assert folder.get(CLIP) == b"new"
    assert folder.delete_below("job_01k8") == 1
    assert list(Path(folder.where).iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE as Linux has it")
def test_a_write_that_the_system_breaks_off_leaves_the_old_artifact(folder):
    folder.put(CLIP, b"old")
    code = f"""
        import resource
        a = Artifacts.open(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            a.put({CLIP!r}, b"x" * 20_000_000)
        except StorageError as failure:
            print(failure)
    """
    assert run(code, folder.where).stdout == f"cannot write {CLIP}: file too large on {folder.where}\n"
    assert folder.get(CLIP) == b"old"
    assert [file.name for file in (Path(folder.where) / "job_01k8").iterdir()] == ["clip.mp4"]


def test_a_full_disk_is_one_clear_line_and_leaves_the_old_artifact(tmp_path):
    allowed = subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True, check=False
    )
    if allowed.returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    code = f"""
        import os, subprocess
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", sys.argv[1]], check=True)
        a = Artifacts.open(sys.argv[1])
        a.put({CLIP!r}, b"old")
        for path in ({CLIP!r}, "other"):
            try:
                a.put(path, b"x" * 5_000_000)
            except StorageError as failure:
                print(failure)
        print(a.get({CLIP!r}), a.list_below(""), os.listdir(sys.argv[1] + "/job_01k8"))
    """
    program = "import sys\nfrom broll.errors import *\nfrom broll.jobs.artifacts import Artifacts\n"
    done = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-c", program + textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == [
        f"cannot write {CLIP}: no space left on {tmp_path}",
        f"cannot write other: no space left on {tmp_path}",
        f"b'old' ['{CLIP}'] ['clip.mp4']",
    ], done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="permissions as POSIX has them")
def test_a_folder_that_may_not_be_written_is_one_clear_line(tmp_path):
    root = tmp_path / "kept"
    Artifacts.open(str(root)).put("clip", b"x")
    (root / "clip").chmod(0o000)
    code = """
        import os
        a = Artifacts.open(sys.argv[1])
        os.chmod(sys.argv[1], 0o555)
        if os.geteuid() == 0:  # root may write anywhere
            for place in (sys.argv[1], *sys.argv[2:]):
                os.chmod(place, 0o555)
            os.setuid(65534)
        for deed in (lambda: a.put("x", b"x"), lambda: a.get("clip"), lambda: a.delete("clip"), a.check):
            try:
                deed()
            except StorageError as failure:
                print(str(failure).partition(":")[2])
    """
    above = [str(place) for place in tmp_path.parents if place.stat().st_mode & 0o005 != 0o005]
    done = run(code, str(root), str(tmp_path), *above)
    assert done.stdout.splitlines() == [f" permission denied on {root}"] * 4, done.stderr


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_folder_that_is_a_file_is_refused(tmp_path, where):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot open the folder"):
        Artifacts.open(str(tmp_path / where))


def test_an_artifact_cannot_be_put_below_another_or_in_place_of_a_job(folder):
    folder.put(CLIP, b"x")
    for path in (CLIP + "/more", "job_01k8"):
        with pytest.raises(StorageError, match=f"cannot write {path}: "):
            folder.put(path, b"y")
    assert folder.get(CLIP) == b"x"


def traced(where: str, *options: str) -> list[str]:
    """The system calls of a process that puts a clip, as strace saw or spoiled them."""
    code = "from broll.jobs.artifacts import Artifacts; import sys; Artifacts.open(sys.argv[1])"
    log = Path(where).with_name("calls")
    command = [sys.executable, "-c", f"{code}.put({CLIP!r}, b'x')", where]
    tracer = ["strace", "-f", "-y", "-o", str(log), *options]
    if (
        not shutil.which("strace")
        or subprocess.run([*tracer, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("strace cannot be used here")
    subprocess.run([*tracer, *command], check=True, timeout=60, capture_output=True)
    return [line.split(maxsplit=1)[1] for line in log.read_text().splitlines() if where in line]


def test_a_put_is_on_the_disk_when_it_returns(folder):
    root = folder.where
    rename, *syncs = traced(root, "-e", "trace=rename,renameat,renameat2,fsync")
    assert rename.startswith(f'rename("{root}/{CLIP}#1", "{root}/{CLIP}")')
    assert [re.search(r"<(.*)>", call)[1] for call in syncs] == [f"{root}/{CLIP}", f"{root}/job_01k8", root]


def test_a_directory_that_is_cleared_away_while_it_is_being_made_is_made_again(folder):
    job = f"{folder.where}/job_01k8"
    calls = traced(folder.where, "-P", job, "-e", "trace=mkdir", "-e", "inject=mkdir:error=ENOENT:when=1..2")
    assert sum("INJECTED" in call for call in calls) == 2
    assert folder.get(CLIP) == b"x"
