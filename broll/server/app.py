"""The application: routes, errors, the envelope around them, and the pages that machines ask for."""

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response

from broll import __version__
from broll.errors import Unavailable
from broll.server import (
    account_routes,
    content_routes,
    job_routes,
    openai_routes,
    problems,
    prompt_routes,
    webhook_routes,
)
from broll.server.deps import Service, ServiceDep, authenticated
from broll.server.document import document
from broll.server.envelope import Envelope
from broll.server.metrics import Metrics
from broll.server.readiness import Readiness

LOOPBACK = {"127.0.0.1", "::1", "testclient"}


def build(service: Service) -> FastAPI:
    """The HTTP side of a service."""
    app = FastAPI(
        title="broll", version=__version__, description="Text or an image in, a finished clip out.",
        openapi_url="/openapi.json", docs_url="/docs", redoc_url=None,
        redirect_slashes=False,  # it would send keys wherever the Host header says
    )  # fmt: skip
    app.state.service = service
    app.state.metrics = Metrics(service.database)
    app.state.readiness = Readiness(service.probe)
    problems.install(app)
    for part in (job_routes, content_routes, account_routes, webhook_routes, prompt_routes, openai_routes):
        app.include_router(part.router)
    _health(app)
    app.add_middleware(Envelope, max_body=service.settings.max_body_mb * 10**6, metrics=app.state.metrics)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app


def _health(app: FastAPI) -> None:
    @app.get("/livez", tags=["health"], response_class=PlainTextResponse)
    def livez() -> str:
        """The process answers."""
        return "ok"

    @app.get("/readyz", tags=["health"], response_class=PlainTextResponse, responses=problems.documented(503))
    def readyz(service: ServiceDep) -> str:
        """The database and the storage answer too, and the process is not on its way out."""
        if service.draining.is_set():
            raise Unavailable("draining")
        trouble = app.state.readiness.trouble()
        if trouble:
            raise Unavailable(f"not ready: {trouble}")
        return "ok"

    @app.get(
        "/metrics",
        tags=["health"],
        response_class=PlainTextResponse,
        responses=problems.documented(401, 403, 429),
    )
    def metrics(request: Request, service: ServiceDep) -> Response:
        """For Prometheus: from this machine, or with an admin key."""
        if request.client is None or request.client.host not in LOOPBACK:
            authenticated(request, service).need("admin")
        return Response(app.state.metrics.text(), media_type="text/plain; version=0.0.4")
