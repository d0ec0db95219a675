"""A site: a crew of processes, jobs for them, and what must be true of a job when it is over."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from safetensors.torch import save_file

from broll import catalog, clips, wiring
from broll.engine import pipeline, weights
from broll.engine.transformer import Transformer
from broll.events import Clip, Work
from broll.jobs import credits, keys
from broll.jobs.artifacts import Artifacts
from broll.jobs.database import Database
from broll.jobs.job import PRIORITIES, Job, NewJob, Policy
from broll.jobs.states import State
from broll.jobs.store import Store
from broll.jobs.tables import attempts, devices, entries, events, jobs, tenants
from broll.renderer import Flag, Renderer
from broll.settings import Settings
from broll.spec import VideoSpec, parse
from tests import checkpoints, databases
from tests.faults.processes import PATIENCE_S, Crew, Serve, crew, until

PRICE, PURSE = 10, 1_000_000
# Where the database decides nothing, `make test` looks at one and `make test-all` at both.
ON_ONE = [databases.KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in databases.KINDS[1:])]
SHORT = {"model": "tiny", "steps": 2}
LONG = {"model": "slow", "steps": 8, "frames": 81}  # each stage takes long enough to be hit
ENDLESS = {"model": "slow", "steps": 2, "frames": 4093, "width": 128, "height": 32}  # seconds for one forward


def make_models(folder: Path) -> Path:
    """`tiny`, and `slow`: the same with 32 layers."""
    checkpoints.diffusers_folder(folder / "tiny")
    slow = checkpoints.diffusers_folder(folder / "slow")
    numbers = dataclasses.replace(checkpoints.transformer_numbers(), num_layers=32, dim=96, ffn_dim=192)
    state = checkpoints.state(checkpoints.built(lambda: Transformer(numbers)))
    named = {weights.rename(name, weights.TRANSFORMER_TO_DIFFUSERS): t for name, t in state.items()}
    save_file(named, slow / "transformer" / "diffusion_pytorch_model.safetensors")
    checkpoints.write_json(slow / "transformer" / "config.json", checkpoints.transformer_json(numbers))
    return folder


def resolved(models: Path, **fields: Any) -> VideoSpec:
    given = {"prompt": "a lake at sunset", "seed": 1} | fields
    found = catalog.find(Settings(models=models), given["model"])
    return pipeline.resolve(parse(**given), wiring.describe(found))


@cache
def undisturbed(models: Path, spec: str) -> str:
    """The latents' sha256 when nothing happens: the renderer in this process."""
    renderer = Renderer(Settings(models=models, threads=1))
    *_, last = renderer.run(Work("reference", json.loads(spec)["model"], spec), Flag())
    assert isinstance(last, Clip), last
    return json.loads(last.record)["latents_sha256"]


@dataclass
class Site:
    crew: Crew
    database: Database
    store: Store
    artifacts: Artifacts
    tenant: str

    # --- jobs ---------------------------------------------------------------------------------------------

    def submit(self, priority: str = "normal", **fields: Any) -> str:
        spec = resolved(self.crew.models, **fields)
        new = NewJob(
            self.tenant, None, spec.model_dump_json(exclude_none=True), spec.model, 100, PRICE,
            priority=PRIORITIES[priority],
        )  # fmt: skip
        return self.store.submit(new).id

    def job(self, job_id: str) -> Job:
        return self.store.get(None, job_id)

    def holder(self, job_id: str) -> Serve:
        device = self.job(job_id).device
        assert device is not None
        return self.crew.holder(device)

    def at(self, job_id: str, stage: str) -> bool:
        """Whether the job is in this stage now; denoise: with two steps behind it."""
        if stage == "deliver":  # the clip is written, and not yet named by the job's row
            return any(self.crew.artifacts.glob(f"jobs/{job_id}/*/video.mp4"))
        if stage == "encode":
            return any(event["data"].get("stage") == "encode" for event in self.store.events(job_id))
        job = self.job(job_id)
        if stage == "denoise":
            return job.snapshot is not None and job.snapshot["step"] >= 1
        return job.stage == stage

    def catch(self, job_id: str, stage: str) -> None:
        """Wait for a stage: calmly for the executor to start, then without a pause."""
        until(lambda: self.at(job_id, "encode"), f"the executor of {job_id}", every_s=0.05)
        until(lambda: self.at(job_id, stage) or self.job(job_id).done, f"stage {stage}", every_s=0.001)

    def finished(self, job_id: str, *, timeout_s: float = PATIENCE_S) -> tuple[Job, list[tuple[int, int]]]:
        """The job at its end, and (attempt, step) of the snapshots that were seen meanwhile."""
        seen: list[tuple[int, int]] = []

        def over() -> Job | None:
            job = self.job(job_id)
            if job.snapshot is not None:
                attempt = self._attempt_of(job)
                if (attempt, job.snapshot["step"]) not in seen:
                    seen.append((attempt, job.snapshot["step"]))
            return job if job.done else None

        return until(over, f"the end of {job_id}", timeout_s=timeout_s, every_s=0.005), seen

    def _attempt_of(self, job: Job) -> int:
        """A snapshot lies in its attempt's folder; one of an earlier attempt is not this one's."""
        assert job.snapshot is not None
        mine = job.lease_token is not None and job.lease_token in job.snapshot["path"]
        return job.attempt if mine else 0

    # --- what is written ----------------------------------------------------------------------------------

    def rows(self, job_id: str) -> list[Any]:
        """Everything that the database holds about a job."""
        with self.database.read() as c:
            kinds = (
                sa.select(jobs).where(jobs.c.id == job_id),
                sa.select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.n),
                sa.select(events).where(events.c.job_id == job_id).order_by(events.c.id),
                sa.select(entries).where(entries.c.job_id == job_id).order_by(entries.c.id),
            )
            return [[tuple(row) for row in c.execute(kind)] for kind in kinds]

    def outcomes(self, job_id: str) -> list[str | None]:
        with self.database.read() as c:
            of = sa.select(attempts.c.outcome).where(attempts.c.job_id == job_id).order_by(attempts.c.n)
            return list(c.execute(of).scalars())

    def kinds(self, job_id: str) -> Counter[str]:
        return Counter(event["type"] for event in self.store.events(job_id))

    def transfers(self, job_id: str) -> Counter[str]:
        """Entries by kind; each transfer is two."""
        with self.database.read() as c:
            of = sa.select(entries.c.kind).where(entries.c.job_id == job_id)
            return Counter(c.execute(of).scalars())

    def seen_at(self, device: str) -> float:
        with self.database.read() as c:
            return c.execute(sa.select(devices.c.seen_at).where(devices.c.name == device)).scalar() or 0.0

    def latents(self, job: Job) -> str:
        """What the delivered clip says about itself, once its bytes are what the row says."""
        assert job.files is not None
        assert job.files.keys() == {"video", "thumbnail", "spritesheet"}
        for file in job.files.values():
            data = self.artifacts.get(file["path"])
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
        path = self.crew.folder / "delivered.mp4"
        path.write_bytes(self.artifacts.get(job.files["video"]["path"]))
        return clips.read_record(path).latents_sha256

    def check_completed_once(self, job_id: str) -> Job:
        """Completed, billed, told and delivered once, with the bits of an undisturbed run."""
        job = self.job(job_id)
        assert job.state is State.COMPLETED, (job.state, job.error, self.outcomes(job_id))
        assert job.charged == PRICE
        assert (job.snapshot, job.lease_token, job.resumed_elsewhere) == (None, None, False)
        assert self.kinds(job_id)["video.completed"] == 1
        assert sum(self.kinds(job_id)[f"video.{end}"] for end in ("failed", "cancelled")) == 0
        outcomes = self.outcomes(job_id)
        assert len(outcomes) == job.attempt
        assert outcomes.count("completed") == 1, outcomes
        assert outcomes[-1] == "completed", outcomes
        assert None not in outcomes
        assert self.transfers(job_id) == {"hold": 2, "capture": 2}
        assert self.latents(job) == undisturbed(self.crew.models, json.dumps(job.spec))
        return job

    def check_failed_cleanly(self, job_id: str, code: str) -> Job:
        """Failed, told once, its credits given back, and nothing published."""
        job = self.job(job_id)
        assert (job.state, job.error_code, job.charged, job.files) == (State.FAILED, code, 0, None)
        assert self.kinds(job_id)["video.failed"] == 1
        assert self.kinds(job_id)["video.completed"] == 0
        assert self.transfers(job_id) == {"hold": 2, "void": 2}
        return job

    def check_ledger(self) -> None:
        """Sums to zero, and holds stand only for jobs that are not done."""
        with self.database.read() as c:
            assert credits.drift(c) == 0
            have = credits.balance(c, self.tenant)
            mine = sa.select(jobs).where(jobs.c.tenant_id == self.tenant)
            found = [Job.of(row) for row in c.execute(mine).mappings()]
        held = sum(job.credits for job in found if not job.done)
        assert have.held == held
        assert have.available == PURSE - held - sum(job.charged or 0 for job in found)


@contextmanager
def site(kind: str, server_url: str | None, models: Path, folder: Path) -> Iterator[Site]:
    with (
        databases.empty_database(kind, folder, server_url) as url,
        databases.ready_database(url) as database,
        crew(url, models, folder / "site") as processes,
    ):
        with database.write() as c:
            tenant = keys.create_tenant(c, "studio", credits=PURSE)
            c.execute(sa.update(tenants).values(requests_per_minute=1_000_000))
        processes.artifacts.mkdir(parents=True)
        yield Site(
            processes, database, Store(database, Policy()), Artifacts.open(str(processes.artifacts)), tenant
        )
