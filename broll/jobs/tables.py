"""The tables. Times are seconds since 1970 by the database's clock; credits are integers; ids are random words.

tenants ─┬─ api_keys
         ├─ jobs ─┬─ attempts     one row a claim
         │        └─ events       one row a change of state or stage
         ├─ entries               the ledger: two rows a transfer, sum zero, never changed
         ├─ uploads, idempotency
         └─ endpoints ── deliveries
devices, timings                  what runs the jobs, and how fast it was
"""

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite counts by itself in INTEGER only
Time = sa.Double


def word(length: int = 64) -> sa.String:
    return sa.String(length)


tenants = sa.Table(
    "tenants",
    metadata,
    sa.Column("id", word(), primary_key=True),
    sa.Column("name", word(200), nullable=False, unique=True),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("available", sa.BigInteger, nullable=False, default=0),  # what the ledger's entries sum to
    sa.Column("held", sa.BigInteger, nullable=False, default=0),
    sa.Column("unmetered", sa.Boolean, nullable=False, default=False),
    sa.Column("weight", Time, nullable=False, default=1.0),  # of its share of the devices
    sa.Column("max_running", sa.Integer, nullable=False, default=1000),
    sa.Column("max_queued", sa.Integer, nullable=False, default=10_000),
    sa.Column("requests_per_minute", sa.Integer, nullable=False, default=600),
    sa.Column("retention_s", Time),  # None: the service's
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", word(), primary_key=True),
    sa.Column("tenant_id", word(), sa.ForeignKey("tenants.id"), nullable=False, index=True),
    sa.Column("name", word(200), nullable=False),
    sa.Column("digest", word(), nullable=False, unique=True),  # HMAC of the key
    sa.Column("hint", word(), nullable=False),  # its beginning and its last letters
    sa.Column("scopes", word(200), nullable=False),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("expires_at", Time),
    sa.Column("revoked_at", Time),
    sa.Column("used_at", Time),
    sa.Column("cap", sa.BigInteger),  # credits that it may spend in all
    sa.Column("spent", sa.BigInteger, nullable=False, default=0),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("seq", Number, primary_key=True, autoincrement=True),
    sa.Column("id", word(), nullable=False, unique=True),
    sa.Column("tenant_id", word(), sa.ForeignKey("tenants.id"), nullable=False),
    sa.Column("key_id", word(), sa.ForeignKey("api_keys.id")),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("asked", sa.Text, nullable=False),  # what the client's own API wants back
    sa.Column("model", word(200), nullable=False),
    sa.Column("memory_mb", sa.Integer, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("state", word(), nullable=False),
    sa.Column("stage", word()),
    sa.Column("percent", Time, nullable=False, default=0.0),
    sa.Column("left_s", Time),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("failures", sa.Integer, nullable=False, default=0),
    sa.Column("not_before", Time, nullable=False, default=0.0),
    sa.Column("lease_token", word()),
    sa.Column("lease_until", Time),
    sa.Column("device", word(200)),
    sa.Column("cancel", sa.Boolean, nullable=False, default=False),
    sa.Column("credits", sa.BigInteger, nullable=False),  # held at submit; the most it can cost
    sa.Column("charged", sa.BigInteger),
    sa.Column("error_code", word()),
    sa.Column("error", sa.Text),
    sa.Column("files", sa.Text),  # variant -> path, bytes, sha256, type
    sa.Column("result", sa.Text),  # seed, checks, takes, retimed: what the clip's own record says of it
    sa.Column("preview", sa.Text),
    sa.Column("snapshot", sa.Text),  # path, sha256, step
    sa.Column("resumed_elsewhere", sa.Boolean, nullable=False, default=False),
    sa.Column("webhook_url", sa.Text),
    sa.Column("retry_of", word()),
    sa.Column("remix_of", word()),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("started_at", Time),
    sa.Column("finished_at", Time),
    sa.Column("expires_at", Time),
    sa.Index("ix_jobs_queue", "state", "priority", "seq"),
    sa.Index("ix_jobs_tenant", "tenant_id", "state", "seq"),
    sa.Index("ix_jobs_lease_token", "lease_token"),
    sa.Index("ix_jobs_expires_at", "expires_at"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("job_id", word(), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("n", sa.Integer, primary_key=True),
    sa.Column("device", word(200), nullable=False),
    sa.Column("started_at", Time, nullable=False),
    sa.Column("ended_at", Time),
    sa.Column("outcome", word()),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", Number, primary_key=True, autoincrement=True),
    sa.Column("job_id", word(), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("type", word(), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("at", Time, nullable=False),
    sa.Index("ix_events_job_id", "job_id", "id"),
)

entries = sa.Table(
    "entries",
    metadata,
    sa.Column("id", Number, primary_key=True, autoincrement=True),
    sa.Column("transfer", word(), nullable=False),
    sa.Column("kind", word(), nullable=False),  # grant | hold | capture | void
    sa.Column("account", word(200), nullable=False),
    sa.Column("tenant_id", word(), sa.ForeignKey("tenants.id"), nullable=False),
    sa.Column("job_id", word()),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("note", word(500), nullable=False, default=""),
    sa.Column("at", Time, nullable=False),
    sa.UniqueConstraint("job_id", "kind", "account"),  # a job is held, captured and voided once
    sa.Index("ix_entries_tenant_id", "tenant_id", "id"),
)

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("id", word(), primary_key=True),
    sa.Column("tenant_id", word(), sa.ForeignKey("tenants.id"), nullable=False, index=True),
    sa.Column("sha256", word(), nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("expires_at", Time, index=True),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("tenant_id", word(), sa.ForeignKey("tenants.id"), primary_key=True),
    sa.Column("route", word(200), primary_key=True),
    sa.Column("key", word(255), primary_key=True),
    sa.Column("fingerprint", word(), nullable=False),
    sa.Column("job_id", word()),  # None: in flight
    sa.Column("at", Time, nullable=False, index=True),
)

endpoints = sa.Table(
    "endpoints",
    metadata,
    sa.Column("id", word(), primary_key=True),
    sa.Column("tenant_id", word(), sa.ForeignKey("tenants.id"), nullable=False, index=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("events", sa.Text, nullable=False),  # JSON list
    sa.Column("secrets", sa.Text, nullable=False),  # JSON list, the newest first; all of them sign
    sa.Column("disabled_at", Time),
    sa.Column("created_at", Time, nullable=False),
    sa.Column("one_off", sa.Boolean, nullable=False, default=False),  # a job's own webhook_url
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", word(), primary_key=True),
    sa.Column("endpoint_id", word(), sa.ForeignKey("endpoints.id", ondelete="CASCADE"), nullable=False),
    sa.Column("tenant_id", word(), sa.ForeignKey("tenants.id"), nullable=False),
    sa.Column("job_id", word()),
    sa.Column("type", word(), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("state", word(), nullable=False),  # pending | delivered | failed
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("next_at", Time, nullable=False),
    sa.Column("status", sa.Integer),  # of the last answer
    sa.Column("error", word(500)),
    sa.Column("created_at", Time, nullable=False),
    sa.Index("ix_deliveries_due", "state", "next_at"),
    sa.Index("ix_deliveries_endpoint_id", "endpoint_id", "created_at"),
)

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("name", word(200), primary_key=True),
    sa.Column("models", sa.Text, nullable=False),  # JSON list
    sa.Column("memory_mb", sa.Integer, nullable=False),
    sa.Column("warm", word(200)),
    sa.Column("seen_at", Time, nullable=False),
)

timings = sa.Table(
    "timings",
    metadata,
    sa.Column("model", word(200), primary_key=True),
    sa.Column("shape", word(), primary_key=True),  # WIDTHxHEIGHTxFRAMES
    sa.Column("forward_s", Time, nullable=False),  # one pass of the transformer
    sa.Column("decode_s", Time, nullable=False),
    sa.Column("at", Time, nullable=False),
)
