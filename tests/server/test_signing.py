"""Signed URLs: whom they let in, until when, and what they survive."""

import string
from urllib.parse import parse_qsl

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broll.errors import BadOption
from broll.server.signing import Signer, derive, key_id

NEW, OLD, FOREIGN = b"n" * 32, b"o" * 32, b"f" * 32
PATH = "/v1/jobs/job_01k8/content"
NOW = 1_800_000_123.25
HOUR = 3600.0

times = st.floats(1_000, 4e9, allow_nan=False)
lives = st.floats(2, 1e7, allow_nan=False)


def query_of(text: str) -> dict[str, str]:
    return dict(parse_qsl(text, strict_parsing=True))


def signed(path: str = PATH, now: float = NOW, life_s: float = HOUR, secret: bytes = NEW) -> dict[str, str]:
    return query_of(Signer([secret]).sign(path, now=now, life_s=life_s))


def test_a_signed_url_opens_its_path():
    assert Signer([NEW]).verify(PATH, signed(), now=NOW)


def test_the_query_needs_no_escaping():
    text = Signer([NEW]).sign(PATH, now=NOW, life_s=HOUR)
    assert set(text) <= set(string.ascii_letters + string.digits + "-_=&")
    assert [name for name, _ in parse_qsl(text)] == ["exp", "kid", "sig"]


def test_other_parameters_beside_it_do_not_matter():
    assert Signer([NEW]).verify(PATH, {**signed(), "variant": "thumbnail"}, now=NOW)


@given(now=times, life_s=lives)
def test_it_lives_for_half_of_its_life_at_least_and_all_of_it_at_most(now, life_s):
    exp = int(signed(now=now, life_s=life_s)["exp"])
    assert life_s // 2 < exp - now <= life_s


@given(now=times, life_s=lives)
def test_it_opens_until_its_expiry_and_not_from_then_on(now, life_s):
    query = signed(now=now, life_s=life_s)
    exp = int(query["exp"])
    assert Signer([NEW]).verify(PATH, query, now=now)
    assert Signer([NEW]).verify(PATH, query, now=exp - 0.01)
    assert not Signer([NEW]).verify(PATH, query, now=exp)
    assert not Signer([NEW]).verify(PATH, query, now=exp + life_s)


@given(step=st.integers(10, 100_000), inside=st.floats(0, 1799.9))
def test_it_stays_the_same_for_half_of_its_life(step, inside):
    start = step * 1800
    assert signed(now=start) == signed(now=start + inside)
    assert signed(now=start) != signed(now=start + 1800)


def test_in_a_day_of_polling_there_is_one_url_per_half_life():
    seen = {signed(now=NOW + second)["exp"] for second in range(0, 86_400, 60)}
    assert len(seen) == 49  # the day begins within a step


@pytest.mark.parametrize("skew", [-1700.0, -60.0, 60.0, 1799.0])
def test_clocks_that_differ_by_less_than_half_a_life_do_no_harm(skew):
    assert Signer([NEW]).verify(PATH, signed(now=NOW), now=NOW + skew)


@given(other=st.text(max_size=60))
def test_it_opens_no_other_path(other):
    assume(other != PATH)
    assert not Signer([NEW]).verify(other, signed(), now=NOW)


@pytest.mark.parametrize(
    "other", [PATH + "/", PATH + "/../x", PATH.upper(), "/" + PATH, PATH + "\0", PATH + "\n"]
)
def test_it_opens_nothing_that_is_almost_its_path(other):
    assert not Signer([NEW]).verify(other, signed(), now=NOW)


@given(name=st.sampled_from(["exp", "kid", "sig"]), at=st.integers(0, 100), letter=st.characters())
def test_one_altered_letter_closes_it(name, at, letter):
    query = signed()
    value = query[name]
    at %= len(value)
    altered = value[:at] + letter + value[at + 1 :]
    assume(altered != value)
    assert not Signer([NEW]).verify(PATH, {**query, name: altered}, now=NOW)


@given(name=st.sampled_from(["exp", "kid", "sig"]), value=st.text(max_size=60))
def test_no_value_makes_it_fail_with_an_error(name, value):
    query = signed()
    assume(query[name] != value)
    assert not Signer([NEW]).verify(PATH, {**query, name: value}, now=NOW)


@pytest.mark.parametrize("lone", ["\ud800", "a\udcff"])
def test_text_that_is_no_text_is_refused_or_kept_apart(lone):
    assert not Signer([NEW]).verify(PATH, {**signed(), "sig": lone}, now=NOW)
    assert not Signer([NEW]).verify("a?", signed(path=lone), now=NOW)
    assert Signer([NEW]).verify(lone, signed(path=lone), now=NOW)


@pytest.mark.parametrize("name", ["exp", "kid", "sig"])
def test_a_missing_part_closes_it(name):
    query = signed()
    del query[name]
    assert not Signer([NEW]).verify(PATH, query, now=NOW)


@pytest.mark.parametrize(
    "exp", ["0{}", "+{}", " {}", "{} ", "{}.0", "{}e1", "{}\n", "", "-1", "９９９９９９９９９９", "9" * 5000]
)
def test_an_expiry_is_written_in_one_way(exp):
    query = signed()
    assert not Signer([NEW]).verify(PATH, {**query, "exp": exp.format(query["exp"])}, now=NOW)


def test_a_later_expiry_cannot_be_taken_from_another_url():
    late = signed(now=NOW + 10 * HOUR)
    assert not Signer([NEW]).verify(PATH, {**signed(), "exp": late["exp"]}, now=NOW)


def test_parts_cannot_be_moved_from_the_path_into_the_expiry():
    query = signed(path="1\nabc")
    assert not Signer([NEW]).verify("abc", {**query, "exp": query["exp"] + "\n1"}, now=NOW)


def test_the_first_secret_signs_and_all_of_them_count():
    both = Signer([NEW, OLD])
    assert signed(secret=NEW) == query_of(both.sign(PATH, now=NOW, life_s=HOUR))
    assert both.verify(PATH, signed(secret=NEW), now=NOW)
    assert both.verify(PATH, signed(secret=OLD), now=NOW)
    assert not both.verify(PATH, signed(secret=FOREIGN), now=NOW)


def test_a_secret_that_was_dropped_counts_no_more():
    assert not Signer([NEW]).verify(PATH, signed(secret=OLD), now=NOW)


def test_a_signature_belongs_to_the_secret_that_it_names():
    query = signed(secret=OLD)
    assert not Signer([NEW, OLD]).verify(PATH, {**query, "kid": key_id(NEW)}, now=NOW)


def test_the_secret_is_neither_in_the_url_nor_in_the_signer_s_text():
    signer = Signer([b"very-secret-very-secret"])
    assert "secret" not in signer.sign("/x", now=NOW, life_s=HOUR) + repr(signer)


@pytest.mark.parametrize("secrets", [[], [b""], [b"short"], [NEW, b"short"]])
def test_a_signer_needs_real_secrets(secrets):
    with pytest.raises(BadOption, match="16 bytes") as refused:
        Signer(secrets)
    assert "short" not in str(refused.value)


@pytest.mark.parametrize("life_s", [0.0, 1.0, 1.99, -5.0])
def test_a_life_that_is_too_short_to_halve_is_refused(life_s):
    with pytest.raises(BadOption, match="2 s is the shortest"):
        Signer([NEW]).sign(PATH, now=NOW, life_s=life_s)


@given(root=st.binary(max_size=64), purpose=st.text(max_size=30))
def test_derived_secrets_are_those_of_rfc_5869(root, purpose):
    hashes = pytest.importorskip("cryptography.hazmat.primitives.hashes")
    hkdf = pytest.importorskip("cryptography.hazmat.primitives.kdf.hkdf")
    judge = hkdf.HKDF(hashes.SHA256(), 32, salt=b"broll", info=purpose.encode())
    assert derive(root, purpose) == judge.derive(root)


def test_each_purpose_and_each_root_has_its_own_secret():
    made = {derive(root, purpose) for root in (NEW, OLD) for purpose in ("urls", "keys", "url", "")}
    assert len(made) == 8 and {len(secret) for secret in made} == {32}
