"""Artifacts: the same promises in a folder and in S3."""

import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broll.errors import ArtifactMissing, BadRequest, StorageError
from broll.jobs.artifacts import PART, PIECE, Artifacts

CLIP = "job_01k8/clip.mp4"


@pytest.mark.parametrize("size", [0, 1, PIECE, PART + 1])
def test_what_is_put_can_be_got(artifacts, size):
    data = os.urandom(size)
    artifacts.put(CLIP, data, content_type="video/mp4")
    assert artifacts.get(CLIP) == data
    assert artifacts.size(CLIP) == size
    assert artifacts.exists(CLIP)


def test_a_second_put_replaces_the_first(artifacts):
    artifacts.put(CLIP, b"first, and longer")
    artifacts.put(CLIP, b"second")
    assert artifacts.get(CLIP) == b"second"
    assert artifacts.list_below("job_01k8") == [CLIP]


@pytest.mark.parametrize("path", ["nothing", "job_01k8", "job_01k8/clip.mp4/more", "job_01k8/clip"])
def test_what_is_not_there_is_missing_and_says_so(artifacts, path):
    artifacts.put(CLIP, b"clip")
    assert not artifacts.exists(path)
    for attempt in (
        lambda: artifacts.get(path),
        lambda: artifacts.size(path),
        lambda: artifacts.read(path, 0, 1),
        lambda: artifacts.read(path, 0, 0),
    ):
        with pytest.raises(ArtifactMissing, match=f"there is no artifact {path}$"):
            attempt()


@pytest.mark.parametrize("span", [(0, 1), (0, 1_000_000), (5, 5), (1_000_000, 1_000_000), (300_001, 999_999)])
def test_a_part_is_read_in_pieces(artifacts, span):
    data = os.urandom(1_000_000)
    artifacts.put(CLIP, data)
    pieces = list(artifacts.read(CLIP, *span))
    assert b"".join(pieces) == data[slice(*span)]
    assert all(0 < len(piece) <= PIECE for piece in pieces)


@pytest.mark.parametrize("span", [(0, 11), (10, 11), (11, 11), (400, 500), (5, 3), (-1, 3), (-3, -1)])
def test_a_part_that_is_not_there_is_refused_before_the_first_piece(artifacts, span):
    artifacts.put(CLIP, b"ten  bytes")
    with pytest.raises(StorageError):
        artifacts.read(CLIP, *span)


def test_a_reader_gets_one_version_even_if_it_is_replaced_meanwhile(artifacts):
    artifacts.put(CLIP, b"a" * 3_000_000)
    pieces = artifacts.read(CLIP, 0, 3_000_000)
    first = next(pieces)
    artifacts.put(CLIP, b"b" * 3_000_000)
    assert first + b"".join(pieces) == b"a" * 3_000_000
    assert artifacts.get(CLIP) == b"b" * 3_000_000


def test_a_deleted_artifact_is_gone_and_deleting_it_again_is_fine(artifacts):
    artifacts.put(CLIP, b"clip")
    artifacts.delete(CLIP)
    assert not artifacts.exists(CLIP)
    artifacts.delete(CLIP)
    artifacts.delete("job_01k8")


def test_a_list_ends_at_the_name_and_not_in_the_middle_of_it(artifacts):
    for path in ("job_1/b", "job_1/a", "job_1/more/c", "job_10/d", "job_1.x"):
        artifacts.put(path, b"")
    assert artifacts.list_below("job_1") == ["job_1/a", "job_1/b", "job_1/more/c"]
    assert artifacts.list_below("job_1/more") == ["job_1/more/c"]
    assert artifacts.list_below("job_2") == []
    assert len(artifacts.list_below("")) == 5


def test_deleting_below_a_job_leaves_the_next_job_alone(artifacts):
    for path in ("job_1/b", "job_1/a", "job_1/more/c", "job_10/d"):
        artifacts.put(path, b"")
    assert artifacts.delete_below("job_1") == 3
    assert artifacts.list_below("") == ["job_10/d"]
    assert artifacts.delete_below("job_1") == 0


def test_everything_at_once_cannot_be_deleted(artifacts):
    artifacts.put(CLIP, b"clip")
    with pytest.raises(BadRequest):
        artifacts.delete_below("")
    assert artifacts.exists(CLIP)


def test_more_than_a_page_of_artifacts_is_listed_and_deleted(artifacts):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: artifacts.put(f"job_1/{number:04}", b""), range(1005)))
    assert artifacts.list_below("job_1") == [f"job_1/{number:04}" for number in range(1005)]
    assert artifacts.delete_below("job_1") == 1005
    assert artifacts.list_below("") == []


def test_readers_see_whole_artifacts_while_writers_replace_them(artifacts):
    size = 700_000
    artifacts.put(CLIP, b"0" * size)

    def write(letter: bytes) -> None:
        for _ in range(6):
            artifacts.put(CLIP, letter * size)

    def read() -> None:
        for _ in range(20):
            data = artifacts.get(CLIP)
            assert len(data) == size and len(set(data)) == 1
            assert artifacts.list_below("job_01k8") == [CLIP]

    with ThreadPoolExecutor(5) as pool:
        work = [pool.submit(write, letter) for letter in (b"1", b"2", b"3")] + [
            pool.submit(read) for _ in "ab"
        ]
    assert [task.result() for task in work] == [None] * 5


def test_a_new_artifact_appears_whole(artifacts):
    size, done = 3_000_000, threading.Event()

    def watch() -> set[int]:
        seen = set()
        while not done.is_set():
            if artifacts.exists(CLIP):
                seen.add(artifacts.size(CLIP))
        return seen

    with ThreadPoolExecutor(1) as pool:
        sizes = pool.submit(watch)
        artifacts.put(CLIP, b"x" * size)
        time.sleep(0.05)
        done.set()
    assert sizes.result() <= {size}


def test_jobs_come_and_go_beside_each_other(artifacts):
    def live(number: int) -> None:
        for turn in range(12):
            path = f"jobs/tenant_{number % 2}/job_{number}/{turn}"
            artifacts.put(path, b"x")
            assert artifacts.get(path) == b"x"
            artifacts.delete(path)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(live, range(6)))
    assert artifacts.list_below("") == []


def test_two_may_delete_the_same_job(artifacts):
    for number in range(40):
        artifacts.put(f"job_1/{number}", b"")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(artifacts.delete_below, ["job_1", "job_1"]))
    assert artifacts.list_below("") == []


def test_the_check_passes_and_leaves_nothing(artifacts):
    artifacts.check()
    assert artifacts.list_below("") == []


TRICKS = [
    *(
        "",
        "/",
        "/etc/passwd",
        "..",
        ".",
        "../x",
        "a/..",
        "a/../b",
        "a/./b",
        "./a",
        "a//b",
        "a/",
        "a\\b",
        "..\\b",
    ),
    *(
        "a\0b",
        "a\n",
        "a\nb",
        "a b",
        "%2e%2e/x",
        "a%2fb",
        "a/%2e%2e",
        "～",
        "a/\u2024\u2024/b",
        "ａ",
        "é",
        "a\u202eb",
    ),
    *("~/x", "a#1", "a?b", "a:b", "C:/x", "a*", "\ud800", "x" * 201, "/".join(["x" * 100] * 9)),
]


@pytest.mark.parametrize("path", TRICKS)
def test_a_path_that_is_not_made_of_ids_is_refused(artifacts, path):
    for attempt in (
        lambda: artifacts.put(path, b""),
        lambda: artifacts.get(path),
        lambda: artifacts.size(path),
        lambda: artifacts.exists(path),
        lambda: artifacts.read(path, 0, 1),
        lambda: artifacts.delete(path),
        lambda: artifacts.delete_below(path),
    ):
        with pytest.raises(BadRequest, match="is no artifact"):
            attempt()


@pytest.mark.parametrize("path", ["...", "..a", "a..", ".a", "-", "_", "a/.../b", "x" * 200, "A1_.-/b"])
def test_dots_and_signs_within_a_name_are_fine(artifacts, path):
    artifacts.put(path, b"x")
    assert artifacts.list_below("") == [path]


pieces = st.sampled_from(
    ["..", ".", "/", "\\", "a", "job_1", "%2e", "%2f", "\0", "~", "é", "#1", "\n", " ", "-", "…"]
)


@given(path=st.lists(pieces, max_size=8).map("".join) | st.text(max_size=30))
@settings(max_examples=300)
def test_no_path_leads_out_of_the_folder(tmp_path_factory, path):
    around = tmp_path_factory.mktemp("around")
    artifacts = Artifacts.open(str(around / "kept"))
    try:
        artifacts.put(path, b"x")
    except BadRequest:
        assert not re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", path)
        assert list((around / "kept").iterdir()) == []
    else:
        assert (around / "kept" / path).read_bytes() == b"x"
        assert ".." not in path.split("/")
    assert list(around.iterdir()) == [around / "kept"]
