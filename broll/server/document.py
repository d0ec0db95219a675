"""The OpenAPI document: what FastAPI finds in the routes, and what it cannot see.

Routes name the refusals that are their own. What is around every route is added here: a key that is missing, wrong or
too eager, a body that is too large or cannot be read, a database that is away. Every error is a Problem.
"""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from broll.server import openai_routes, schemas
from broll.server.problems import documented

KEYED = (401, 403, 429, 503)  # whatever asks for a key
SENT = (413, 422)  # whatever takes a body
FOREIGN = ("HTTPValidationError", "ValidationError")  # FastAPI's own error, which is never answered here


def document(app: FastAPI) -> dict[str, Any]:
    """Made when it is first asked for."""
    if app.openapi_schema is None:
        app.openapi_schema = described(app)
    return app.openapi_schema


def described(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    known = made.setdefault("components", {}).setdefault("schemas", {})
    for model in (schemas.Problem, schemas.Generate, openai_routes.Create):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        known |= schema.pop("$defs", {})
        known[model.__name__] = schema
    for operation in operations(made):
        answers = operation.setdefault("responses", {})
        codes = (*KEYED * ("security" in operation), *SENT * ("requestBody" in operation))
        for code, answer in documented(*codes, *([422] if "422" in answers else [])).items():
            answers[str(code)] = answer
    for name in FOREIGN:
        known.pop(name, None)
    return made


def operations(made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in made["paths"].values():
        yield from path.values()
