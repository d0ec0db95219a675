"""The OpenAPI document: true for whatever is asked, complete, and a wall between tenants from end to end."""

import io
import os
import subprocess
import sys
import time

import pytest
from PIL import Image

from broll.jobs import keys
from tests.live import KEY, finished, live
from tests.server.sites import site

SECRET_PROMPT = "a lighthouse that nobody else may know of"


def picture():
    out = io.BytesIO()
    Image.new("RGB", (64, 32), "navy").save(out, "PNG")
    return out.getvalue()


def operations(document):
    return {(method.upper(), path) for path, item in document["paths"].items() for method in item}


# --- schemathesis -----------------------------------------------------------------------------------------

CONFIG = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 501]
"""
# A string that reads as a number counts as one, because forms have only strings; and much that a schema cannot say
# is refused: addresses that lead inside, sizes and lengths that no model makes.
LEFT_OUT = "negative_data_rejection,positive_data_acceptance"


@pytest.fixture(scope="module")
def api_only(tiny_models, tmp_path_factory):
    """Takes jobs, and makes none of the thousands."""
    with live(tiny_models, tmp_path_factory.mktemp("api"), role="api") as running:
        with running.running.service.database.write() as c:
            keys.change_tenant(c, keys.find_tenant(c, "local"), requests_per_minute=10**6)
        yield running


@pytest.mark.parametrize(
    ("phases", "examples"),
    [("fuzzing", 1), pytest.param("coverage,fuzzing,stateful", 5, marks=pytest.mark.slow)],
)
def test_nothing_that_schemathesis_thinks_of_gets_an_answer_that_is_not_in_the_document(
    api_only, tmp_path, phases, examples
):
    pytest.importorskip("schemathesis")
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    command += [f"{api_only.url}/openapi.json", "-H", f"Authorization: Bearer {KEY}", "--phases", phases]
    command += ["-n", str(examples), "--exclude-checks", LEFT_OUT, "--no-shrink", "--continue-on-failure"]
    command += ["--request-timeout", "30", "--warnings", "off", "--seed", "1"]
    quiet = {"NO_COLOR": "1", "SCHEMATHESIS_REPORT": "false"}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=tmp_path, env=os.environ | quiet
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    with api_only.client() as client:
        assert client.get("/readyz").text == "ok"


# --- what the document says -------------------------------------------------------------------------------


def test_every_refusal_is_in_the_document_as_a_problem(service):
    with service.client() as client:
        document = client.get("/openapi.json").json()
    problem = {"$ref": "#/components/schemas/Problem"}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            codes = {int(code) for code in operation["responses"]}
            where = f"{method} {path}: {sorted(codes)}"
            if operation.get("security"):
                assert codes >= {401, 403, 429, 503}, where
            if "{" in path:
                assert 404 in codes, where
            if "requestBody" in operation:
                assert codes >= {413, 422}, where
            if operation.get("parameters"):
                assert 422 in codes, where
            for code in codes:
                if code >= 400:
                    answer = operation["responses"][str(code)]["content"]
                    assert answer == {"application/problem+json": {"schema": problem}}, where
    assert document["components"]["schemas"].keys().isdisjoint({"HTTPValidationError", "ValidationError"})


def test_every_reference_in_the_document_leads_somewhere(service):
    with service.client() as client:
        document = client.get("/openapi.json").json()
    found, ids = [], []

    def look(part):
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                found.append(part["$ref"])
            if isinstance(part.get("operationId"), str):
                ids.append(part["operationId"])
            for inner in part.values():
                look(inner)
        elif isinstance(part, list):
            for inner in part:
                look(inner)

    look(document)
    assert found
    for reference in set(found):
        target = document
        for name in reference.removeprefix("#/").split("/"):
            target = target[name]
    assert len(ids) == len(set(ids)) == len(operations(document))


# --- two tenants ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def receiver():
    with site({"/hook": (200, {}, b"")}) as server:
        yield f"http://127.0.0.1:{server.port}/hook-of-a"


@pytest.fixture(scope="module")
def two(tiny_models, tmp_path_factory, receiver):
    """A service, tenant A with one of everything, and tenant B's client."""
    data = tmp_path_factory.mktemp("two")
    with live(tiny_models, data, network_allow=["127.0.0.0/8"]) as running:
        a_key, b_key = running.tenant("studio-a", credits=1000), running.tenant("studio-b", credits=1000)
        with running.client(a_key) as a, running.client(b_key) as b:
            yield running, a, b, one_of_everything(running, a, receiver)


def one_of_everything(running, a, receiver):
    endpoint = a.post("/v1/webhook-endpoints", json={"url": receiver}).raise_for_status().json()
    upload = a.post("/v1/uploads", files={"file": picture()}).raise_for_status().json()
    key = a.post("/v1/api-keys", json={"name": "key-of-a"}).raise_for_status().json()
    order = {"prompt": SECRET_PROMPT, "model": "tiny", "seed": 1}
    job = (
        a.post("/v1/video/generate", json=order, headers={"Idempotency-Key": "same"})
        .raise_for_status()
        .json()
    )
    a.post(f"/v1/webhook-endpoints/{endpoint['id']}/test").raise_for_status()
    finished(a, job["job_id"])
    path = f"/v1/webhook-endpoints/{endpoint['id']}/deliveries"
    delivery = next(d for d in a.get(path).json()["data"] if d["type"] == "webhook.test")
    with running.client() as admin:
        tenants = admin.get("/v1/admin/tenants").json()["data"]
        tenant = next(t["id"] for t in tenants if t["name"] == "studio-a")
    made = {
        "job_id": job["job_id"],
        "video_id": job["job_id"],
        "upload_id": upload["id"],
        "key_id": key["id"],
    }
    made |= {"endpoint": endpoint["id"], "delivery": delivery["id"], "tenant_id": tenant}
    secret = a.get("/v1/webhook-endpoints/default-secret").json()["secret"]
    more = (SECRET_PROMPT, receiver, endpoint["secret"], secret, key["key"], key["hint"], upload["sha256"])
    return made, {*made.values(), *more, "studio-a", "key-of-a"}


def wishes(made):
    """What B asks of operations without an id in their path: (query, body, the status that is due)."""
    small = {"prompt": "x", "model": "tiny"}
    start = {"prompt": "x", "model": "tiny-i2v", "image": made["upload_id"]}
    reference = {"prompt": "x", "model": "tiny-i2v", "input_reference": {"file_id": made["upload_id"]}}
    return {
        ("POST", "/v1/video/generate"): [({}, start, 404), ({}, small | {"retry_of": made["job_id"]}, 422)],
        ("POST", "/v1/video/estimate"): [({}, start, 404)],
        ("POST", "/v1/prompts/check"): [({}, {"prompt": f"a lake, {made['job_id']}"}, 200)],
        ("POST", "/v1/prompts/rewrite"): [({}, small | {"without": [made["job_id"]]}, 200)],
        ("GET", "/v1/jobs"): [({"after": made["job_id"]}, None, 404), ({}, None, 200)],
        ("POST", "/v1/videos"): [({}, reference, 404), ({}, small | {"remix_of": made["job_id"]}, 422)],
        ("GET", "/v1/videos"): [({"after": made["job_id"]}, None, 404), ({}, None, 200)],
        ("POST", "/v1/videos/edits"): [({}, {"video": {"id": made["job_id"]}, "prompt": "x"}, 501)],
        ("POST", "/v1/videos/extensions"): [({}, {"video": {"id": made["job_id"]}, "prompt": "x"}, 501)],
        ("POST", "/v1/videos/characters"): [({}, {"video": {"id": made["job_id"]}}, 501)],
        ("GET", "/v1/models"): [({}, None, 200)],
        ("GET", "/v1/credits"): [({}, None, 200)],
        ("GET", "/v1/credits/ledger"): [({}, None, 200), ({"after": 2**40}, None, 200)],
        ("GET", "/v1/api-keys"): [({}, None, 200)],
        ("POST", "/v1/api-keys"): [
            ({}, {"tenant_id": made["tenant_id"]}, 422),
            ({}, {"scopes": ["admin"]}, 403),
        ],
        ("POST", "/v1/uploads"): [({}, None, 422)],
        ("GET", "/v1/webhook-endpoints"): [({}, None, 200)],
        ("POST", "/v1/webhook-endpoints"): [({}, {"url": "http://127.0.0.1/", "tenant_id": "x"}, 422)],
        ("GET", "/v1/webhook-endpoints/default-secret"): [({}, None, 200)],
        ("POST", "/v1/webhook-endpoints/default-secret/rotate"): [({}, None, 200)],
        ("GET", "/v1/admin/tenants"): [({}, None, 403)],
        ("POST", "/v1/admin/tenants"): [({}, {"name": "mine"}, 403)],
        ("GET", "/livez"): [({}, None, 200)],
        ("GET", "/readyz"): [({}, None, 200)],
        ("GET", "/metrics"): [({}, None, 200)],
    }


BODIES = {
    ("POST", "/v1/videos/{video_id}/remix"): {"prompt": "x"},
    ("PATCH", "/v1/admin/tenants/{tenant_id}"): {"max_running": 1},
    ("POST", "/v1/admin/tenants/{tenant_id}/credits"): {"amount": 1},
    ("POST", "/v1/admin/tenants/{tenant_id}/api-keys"): {"name": "mine"},
}
QUERIES = {("GET", "/v1/webhook-endpoints/{endpoint}/deliveries"): ("after", "delivery")}


def belongings(a, made):
    """All that A can see."""
    pages = ["/v1/jobs", "/v1/api-keys", "/v1/webhook-endpoints", "/v1/credits", "/v1/credits/ledger"]
    pages += [f"/v1/uploads/{made['upload_id']}", f"/v1/jobs/{made['job_id']}", "/v1/videos"]
    pages += ["/v1/webhook-endpoints/default-secret"]
    return [a.get(page).raise_for_status().json() for page in pages]


def steady(page):
    """Without what moves by itself: signed links and when a key was last seen."""
    if isinstance(page, dict):
        return {k: steady(v) for k, v in page.items() if k not in ("output_url", "used_at")}
    return [steady(item) for item in page] if isinstance(page, list) else page


def test_a_tenant_who_walks_the_whole_document_with_anothers_ids_sees_and_changes_nothing(two):
    _, a, b, (made, secrets) = two
    document = b.get("/openapi.json").json()
    before, walked, known = steady(belongings(a, made)), set(), wishes(made)
    for method, path in sorted(operations(document)):
        if "{" in path:
            status = 403 if path.startswith("/v1/admin/") else 404
            query = QUERIES.get((method, path))
            asked = [({}, BODIES.get((method, path)), status)]
            asked += [({query[0]: made[query[1]]}, None, status)] if query else []
        else:
            asked = known.get((method, path), [])
        for query, body, status in asked:
            answer = b.request(method, path.format(**made), params=query, json=body)
            assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
            assert str(status) in document["paths"][path][method.lower()]["responses"], f"{method} {path}"
            sent = f"{path.format(**made)} {query} {body}"
            told = answer.text + repr(answer.headers)
            assert not [s for s in secrets if s in told and s not in sent], f"{method} {path}"
            walked.add((method, path))
    assert operations(document) - walked == set(), "operations of the document that nobody walked"
    assert known.keys() <= walked
    assert steady(belongings(a, made)) == before


def test_anothers_things_are_out_of_reach_by_every_detour(two):
    _, a, b, (made, secrets) = two
    mine = b.post(
        "/v1/webhook-endpoints", json={"url": a.get("/v1/webhook-endpoints").json()["data"][0]["url"]}
    )
    own = mine.raise_for_status().json()["id"]
    job = made["job_id"]
    detours = [
        ("GET", f"/v1/webhook-endpoints/{own}/deliveries?after={made['delivery']}", None),
        ("POST", f"/v1/webhook-endpoints/{own}/deliveries/{made['delivery']}/replay", None),
        ("GET", f"/v1/webhook-endpoints/we_{job}", None),
        ("GET", f"/v1/webhook-endpoints/we_default_{made['tenant_id']}", None),
        ("DELETE", f"/v1/webhook-endpoints/we_default_{made['tenant_id']}", None),
        *(
            ("GET", f"/v1/jobs/{job}/content?variant={v}", None)
            for v in ("video", "thumbnail", "gif", "preview")
        ),
        ("POST", "/v1/videos", {"prompt": "x", "input_reference": {"file_id": job}}),
    ]
    for method, path, body in detours:
        answer = b.request(method, path, json=body)
        assert answer.status_code in (404, 422), f"{method} {path}: {answer.text}"
        assert not [s for s in secrets if s in answer.text and s not in path and s not in str(body)]
    taken = a.get(f"/v1/jobs/{job}").json()["output_url"]
    signed = taken.split("?variant=video&")[1]
    for variant in ("thumbnail", "spritesheet", "gif", "preview"):
        assert b.get(f"/v1/jobs/{job}/content?variant={variant}&{signed}").status_code == 401


def test_the_same_idempotency_key_of_two_tenants_makes_two_jobs(two):
    _, _, b, (made, _) = two
    order = {"prompt": SECRET_PROMPT, "model": "tiny", "seed": 1}
    own = b.post("/v1/video/generate", json=order, headers={"Idempotency-Key": "same"})
    assert own.status_code == 202
    assert "idempotency-replayed" not in own.headers
    assert own.json()["job_id"] != made["job_id"]
    finished(b, own.json()["job_id"])


def test_a_revoked_key_opens_nothing_after_a_moment(two):
    running, a, _, _ = two
    made = a.post("/v1/api-keys", json={"name": "short-lived"}).raise_for_status().json()
    with running.client(made["key"]) as holder:
        assert holder.get("/v1/jobs").status_code == 200
        assert a.delete(f"/v1/api-keys/{made['id']}").status_code == 204
        until = time.monotonic() + 10
        while holder.get("/v1/jobs").status_code != 401:
            assert time.monotonic() < until
            time.sleep(0.2)
