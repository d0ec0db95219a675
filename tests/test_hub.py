"""Files from a hub: whole or not at all, gone on with where they stopped, and never outside their folder."""

import random
import time

import pytest
from huggingface_hub import constants

from broll import hub
from broll.errors import BadDownload, HubNotFound, HubRefused, HubUnreachable, OutputError
from tests import hub as hubs

WEIGHTS = random.Random(0).randbytes(300_000)
FILES = {"config.json": b'{"dim": 3}', "weights/a.safetensors": WEIGHTS, "empty.json": b""}


@pytest.fixture
def there(monkeypatch):
    with hubs.running() as running:
        running.repositories["some/one"] = dict(FILES)
        hubs.use(running, monkeypatch)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
        yield running


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    return made


def listed():
    return {file.path: file for file in hub.listing("some/one", "main").files}


def held(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_listing_says_commit_size_digest_and_licence(there):
    found = hub.listing("some/one", "main")
    files = {file.path: file for file in found.files}
    assert found.license == "apache-2.0"
    assert {file.revision for file in found.files} == {hubs.COMMIT}
    assert {path: file.size for path, file in files.items()} == {p: len(d) for p, d in FILES.items()}
    assert files["weights/a.safetensors"].sha256 is not None
    assert files["config.json"].sha256 is None  # git's sha1 has to do


def test_files_arrive_whole_and_it_is_said_how_far_they_are(there, folder):
    seen = list(hub.fetch(listed(), folder))
    assert held(folder) == FILES
    assert (seen[-1].done, seen[-1].total) == (300_010, 300_010)
    assert all(0 <= at.done <= at.total for at in seen)


def test_what_is_here_is_checked_and_not_fetched_again(there, folder):
    list(hub.fetch(listed(), folder))
    there.asked.clear()
    (folder / "config.json").write_bytes(b'{"dim": 4}')  # of the same length
    seen = list(hub.fetch(listed(), folder))
    assert seen[0].stage == "checking"
    assert held(folder) == FILES
    assert there.fetched() == ["config.json"]


def test_a_line_that_is_cut_in_the_middle_of_a_file_is_taken_up_there(there, folder):
    there.drop["weights/a.safetensors"] = 120_000
    list(hub.fetch(listed(), folder))
    assert held(folder) == FILES
    assert ("weights/a.safetensors", "bytes=120000-") in there.asked


def test_a_later_run_goes_on_in_the_middle_of_a_file(there, folder):
    there.drop["weights/a.safetensors"] = 120_000
    run = hub.fetch(listed(), folder)
    while next(run).done != 120_010:  # the small files, and what came before the cut
        assert "weights/a.safetensors" not in held(folder)
    there.broken.add("weights/a.safetensors")
    with pytest.raises(HubUnreachable, match="503"):
        list(run)
    assert "weights/a.safetensors" not in held(folder)
    there.broken.clear()
    there.asked.clear()
    list(hub.fetch(listed(), folder))
    assert held(folder) == FILES
    assert there.asked == [("weights/a.safetensors", "bytes=120000-")]


def test_a_hub_that_knows_no_ranges_sends_the_file_anew(there, folder):
    there.drop["weights/a.safetensors"] = 120_000
    there.no_ranges = True
    seen = list(hub.fetch(listed(), folder))
    assert held(folder) == FILES
    assert seen[-1].done == 300_010


def test_another_commits_half_is_not_taken_up(there, folder):
    list(hub.fetch(listed(), folder))
    there.repositories["some/one"] = {"config.json": b"{}", "weights/b.safetensors": WEIGHTS[::-1]}
    (folder / hub.FETCHING).mkdir()
    (folder / hub.FETCHING / "of-something-else").write_bytes(b"x")
    list(hub.fetch(listed(), folder))
    assert held(folder) == there.repositories["some/one"]


def test_wrong_bytes_are_refused_by_name_and_not_kept(there, folder):
    there.corrupt.add("weights/a.safetensors")
    with pytest.raises(BadDownload, match=r"weights/a\.safetensors of some/one arrived with the digest"):
        list(hub.fetch(listed(), folder))
    assert all(WEIGHTS[1:100] not in data for data in held(folder).values())


def test_a_small_file_with_wrong_bytes_is_refused_too(there, folder):
    there.corrupt.add("config.json")
    with pytest.raises(BadDownload, match=r"config\.json"):
        list(hub.fetch(listed(), folder))
    assert "config.json" not in held(folder)


def test_more_bytes_than_listed_are_refused(there, folder):
    there.sizes["weights/a.safetensors"] = 1000
    with pytest.raises(BadDownload, match="longer than the 1000 bytes"):
        list(hub.fetch(listed(), folder))


def test_a_disk_without_room_is_said_before_anything_is_fetched(there, folder):
    there.sizes["weights/a.safetensors"] = 10**18
    with pytest.raises(OutputError, match=r"1000000000\.0 GB are to be fetched, and .* has room for"):
        list(hub.fetch(listed(), folder))
    assert there.asked == []


@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "a/../../x", "a//b", "./a", "a\\b", "C:x", "a/\nb", " a", ".fetching/x", ""]
)
def test_a_path_that_leaves_the_folder_is_refused(there, folder, path):
    there.repositories["some/one"][path] = b"x"
    with pytest.raises(BadDownload, match="no path inside a folder"):
        hub.listing("some/one", "main")
    assert there.asked == []


def test_a_link_in_the_folder_is_not_written_through(there, folder, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    (folder / "config.json").symlink_to(outside)
    list(hub.fetch(listed(), folder))
    assert outside.read_bytes() == b"mine"
    assert held(folder) == FILES


def test_one_who_stops_waiting_stops_the_download(there, folder):
    there.stall["weights/a.safetensors"] = 50_000
    run = hub.fetch({"weights/a.safetensors": listed()["weights/a.safetensors"]}, folder)
    next(run)
    run.close()
    there.stall.clear()
    there.go_on.set()
    time.sleep(0.3)
    assert "weights/a.safetensors" not in held(folder)


def test_what_a_hub_refuses_is_one_line_with_a_way_out(there, monkeypatch):
    there.repositories |= {"some/gated": {}, "some/private": {}}
    there.gated.add("some/gated")
    there.private["some/private"] = "secret"
    for repository, revision, kind, said in [
        ("some/none", "main", HubNotFound, "no repository some/none"),
        ("some/private", "main", HubNotFound, "HF_TOKEN"),
        ("some/gated", "main", HubRefused, "accept its terms"),
        ("some/one", "none", HubNotFound, "no revision none"),
        ("some--one/x", "main", HubNotFound, "no name of a repository"),
    ]:
        with pytest.raises(kind, match=said) as caught:
            hub.listing(repository, revision)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert hub.listing("some/private", "main").files == ()


def test_a_hub_that_is_not_there_is_one_line(monkeypatch):
    with hubs.running() as gone:
        pass
    hubs.use(gone, monkeypatch)
    with pytest.raises(HubUnreachable, match=f"{gone.url} does not answer"):
        hub.listing("some/one", "main")
