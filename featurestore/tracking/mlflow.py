"""MLflow: runs written and read. The only module that imports it, when it is used.

No model is ever loaded. What is asked for is validated before MLflow hears of it, and no part of it becomes a path.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from featurestore.errors import InputError, ModelError, NotFoundError, TrackerError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "featurestore"
"""The folder of a run's artifacts that is ours."""
TRAINING = "training"
"""The context of the data that a run's model is trained with."""
SET = "featurestore.training_set"
"""The tag that holds the id of the set that a run's model is trained with."""
MOST_TAG = 8_000
"""At most so many characters has a tag: a longer one would be cut."""
_MOST_NAME = 500
_MOST_SCHEMA = 1_000_000
_DIGEST = 32
_PAGE = 100
_MOST_DOCUMENT = 64 * 2**20
"""A larger artifact is not read."""
_PROBE_S = 5.0
"""How long a server may take to answer at all. MLflow itself tries for minutes."""

_RUN = re.compile(r"runs:/([A-Za-z0-9][A-Za-z0-9_-]{0,255})(?:/[^\s]*)?")
_MODEL = re.compile(r"models:/([^/:]{1,250})(?:@([A-Za-z0-9_-]{1,255})|/([1-9][0-9]{0,9}))")
_LOGGED = re.compile(r"(?:models:/)?(m-[0-9a-f]{32})")
_LOGIN = re.compile(r"://\S*@")
_FORMS = "Write models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID or a logged model's model_uri."


@dataclass(frozen=True, slots=True)
class SetInput:
    """A training set as an input of a run."""

    id: str
    name: str
    rows: int
    columns: Mapping[str, pa.DataType]
    source: Mapping[str, Any]
    facts: Mapping[str, str | int]
    documents: Mapping[str, Mapping[str, Any]]
    """What becomes an artifact, by the name of its file."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run that a model came from, and what it says about what it was trained with."""

    uri: str
    """What was asked for."""
    run_id: str
    tags: Mapping[str, str]
    name: str = ""
    """Of the registered model; empty for a run."""
    version: str = ""

    @property
    def told(self) -> str:
        """The model or run, for messages."""
        return f"{self.uri} (version {self.version})" if self.version and "@" in self.uri else self.uri


def log_set(given: SetInput, *, run_id: str | None, context: str) -> str:
    """Put a set into a run, by default the active one, and return the run's id.

    As the data to train with it also gives the run its tags and artifacts; the tags come last, so that a run that has
    them has all. Raises InputError without a run and for a run that has another set, TrackerError.
    """
    client = _client()
    from mlflow.entities import Dataset, DatasetInput, InputTag, RunTag

    run_id = _active_run() if run_id is None else _checked(f"runs:/{run_id}", _RUN)[1]
    with _translated():
        known = _run(client, run_id, f"runs:/{run_id}").data.tags.get(SET)
        if context == TRAINING and known not in (None, given.id):
            raise InputError(
                f"Run {run_id} has another training set already: {known[:_DIGEST]}, not {given.id[:_DIGEST]}.",
                hint="Train in a run of its own, or log this set with another context, such as context='test'.",
                run_id=run_id,
            )
        if context == TRAINING and known == given.id:
            return run_id
        schema = json.dumps({"mlflow_colspec": _columns(given.columns)})
        dataset = Dataset(
            name=given.name[:_MOST_NAME],
            digest=given.id[:_DIGEST],
            source_type="featurestore",
            source=json.dumps(given.source),
            schema=schema if len(schema) <= _MOST_SCHEMA else None,
            profile=json.dumps({"num_rows": given.rows, "num_elements": given.rows * len(given.columns)}),
        )
        if context == TRAINING:
            for file, document in given.documents.items():
                client.log_dict(run_id, dict(document), f"{FOLDER}/{file}")
        tags = [InputTag("mlflow.data.context", context), InputTag(SET, given.id)]
        client.log_inputs(run_id, [DatasetInput(dataset, tags)])
        if context == TRAINING:
            texts = {name: str(value) for name, value in given.facts.items()}
            client.log_batch(run_id, tags=[RunTag(name, text[:MOST_TAG]) for name, text in texts.items()])
    return run_id


def read_run(uri: str) -> TrackedRun:
    """Return the run that a model, or a run, is.

    Raises InputError for a text that names neither, NotFoundError with the closest name, ModelError for a version
    without a run, TrackerError.
    """
    form = next((each for each in (_RUN, _LOGGED) if each.fullmatch(str(uri))), _MODEL)
    found = _checked(uri, form)
    client = _client()
    with _translated():
        if form is not _MODEL:
            run_id = found[1] if form is _RUN else _run_of_logged(client, found[1])
            if not run_id:
                raise NotFoundError(f"MLflow has no logged model {found[1]!r} of a run.", hint="Was it deleted?")
            return TrackedRun(uri, run_id, _run(client, run_id, uri).data.tags)
        name, alias, number = found[1], found[2], found[3]
        model = _found(lambda: client.get_registered_model(name))
        if model is None:
            known = [each.name for each in client.search_registered_models(max_results=_PAGE)]
            raise NotFoundError(
                f"MLflow has no registered model {name!r}.",
                hint=did_you_mean(name, known) or "Log one with registered_model_name=.",
                name=name,
            )
        if alias and alias not in model.aliases:
            hint = did_you_mean(alias, model.aliases) or "It has no alias: set one, or name a version."
            raise NotFoundError(f"Model {name!r} has no alias {alias!r}.", hint=hint, name=alias)
        number = str(model.aliases[alias]) if alias else number
        version = _found(lambda: client.get_model_version(name, number))
        if version is None:
            raise NotFoundError(
                f"Model {name!r} has no version {number}.", hint="`mlflow models` or its page lists them.", name=number
            )
        run_id = version.run_id or _run_of_logged(client, str(getattr(version, "model_id", None) or ""))
        if not run_id:
            raise ModelError(
                f"Version {number} of model {name!r} names no run: MLflow cannot say what it was trained with.",
                hint="Register a model that was logged in a run: log_model(..., registered_model_name=...).",
            )
        return TrackedRun(uri, run_id, _run(client, run_id, uri).data.tags, name, number)


def aliased_models() -> list[str]:
    """Return every model that an alias names, as `read_run` takes it; raises TrackerError."""
    client, found, token = _client(), list[str](), None
    with _translated():
        while True:
            page = client.search_registered_models(max_results=_PAGE, page_token=token)
            found += [f"models:/{model.name}@{alias}" for model in page for alias in sorted(model.aliases)]
            if not (token := page.token):
                return found


def read_document(run_id: str, file: str) -> Mapping[str, Any]:
    """Return an artifact of a run that `log_set` wrote; raises NotFoundError, TrackerError."""
    client = _client()
    with _translated(), tempfile.TemporaryDirectory(prefix="featurestore-mlflow-") as folder:
        path = _found(lambda: client.download_artifacts(run_id, f"{FOLDER}/{file}", folder))
        content = None if path is None else Path(path)
        if content is None or not content.is_file() or content.stat().st_size > _MOST_DOCUMENT:
            raise NotFoundError(f"Run {run_id} has no artifact {FOLDER}/{file}.", hint="Was it deleted?", name=file)
        try:
            document = json.loads(content.read_bytes())
        except ValueError:
            document = None
    if not isinstance(document, dict):
        raise TrackerError(f"The artifact {FOLDER}/{file} of run {run_id} is not what featurestore wrote there.")
    return document


def _checked(uri: Any, form: re.Pattern[str]) -> re.Match[str]:
    found = form.fullmatch(uri) if isinstance(uri, str) and uri.isprintable() else None
    if found is None:
        raise InputError(f"{uri!r} names no model and no run.", hint=_FORMS)
    return found


def _import() -> Any:
    try:
        import mlflow
    except ImportError as error:
        raise TrackerError(
            f"This needs MLflow: {error}.", hint="Run `pip install '.[mlflow]'` in a checkout."
        ) from None
    return mlflow


def _client() -> Any:
    """Return MLflow's client of the server that is set; raises TrackerError where there is none or it is away."""
    mlflow = _import()
    with _translated():
        uri = str(mlflow.get_tracking_uri())
        _check_there(uri)
        return mlflow.MlflowClient()


def _check_there(uri: str) -> None:
    """Raise TrackerError at once where MLflow would try for minutes, or make an empty store."""
    try:
        parts = urlsplit(uri)
        at = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")  # it may hold a password
    except ValueError:
        raise TrackerError(
            "MLFLOW_TRACKING_URI is no URL.", hint="Percent-encode what stands in its user and password."
        ) from None
    if parts.scheme == "sqlite" and not Path(unquote(parts.path[1:])).exists():
        raise TrackerError(
            "No MLflow server is named, and there is no mlflow.db here.",
            hint="Set MLFLOW_TRACKING_URI, or call mlflow.set_tracking_uri(...).",
        )
    if parts.scheme not in ("http", "https"):
        return
    import requests

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    verify: bool | str = False if insecure else os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
    try:  # any answer will do: a server behind a login may refuse this one
        requests.get(f"{at}/health", timeout=_PROBE_S, verify=verify, allow_redirects=False, stream=True).close()
    except requests.RequestException as error:
        raise TrackerError(
            f"MLflow does not answer at {at} ({type(error).__name__}).",
            hint="Is it running, and is MLFLOW_TRACKING_URI right?",
        ) from None


@contextmanager
def _translated() -> Iterator[None]:
    mlflow = _import()
    try:
        yield
    except (mlflow.exceptions.MlflowException, ImportError, OSError) as error:
        first = str(error).strip().splitlines()
        raise TrackerError(
            f"MLflow failed: {_LOGIN.sub('://', first[0]) if first else type(error).__name__}",
            hint="Look at MLflow's log; MLFLOW_TRACKING_URI and its token say whom it speaks with.",
        ) from None  # it names the URL, which may hold a password


def _found(work: Any) -> Any:
    """Return what MLflow has, None where it has none."""
    mlflow = _import()
    try:
        return work()
    except mlflow.exceptions.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
            return None
        raise


def _run(client: Any, run_id: str, uri: str) -> Any:
    run = _found(lambda: client.get_run(run_id))
    if run is None:
        hint = "Its id is on its page in MLflow." if uri.startswith("runs:") else "It was deleted: log the model again."
        raise NotFoundError(f"MLflow has no run {run_id!r}.", hint=hint, name=run_id)
    return run


def _run_of_logged(client: Any, model: str) -> str | None:
    """Return the run of a logged model, which is what a version is made from."""
    if not _LOGGED.fullmatch(model):
        return None
    found = _found(lambda: client.get_logged_model(model))
    return None if found is None else found.source_run_id


def _active_run() -> str:
    run = _import().active_run()
    if run is None:
        raise InputError("No MLflow run is active.", hint="Call it within `with mlflow.start_run():`, or pass run_id=.")
    return str(run.info.run_id)


def _columns(columns: Mapping[str, pa.DataType]) -> list[dict[str, Any]]:
    from mlflow.types import ColSpec, Schema

    specs = [ColSpec(_type(kind), name, required=False) for name, kind in columns.items()]
    made: list[dict[str, Any]] = Schema(specs).to_dict()
    return made


def _type(kind: pa.DataType) -> Any:
    """Return an Arrow type as MLflow names it; what it has no name for is shown as text."""
    import pyarrow.types as is_
    from mlflow.types import DataType
    from mlflow.types.schema import Array

    if is_.is_list(kind):
        return Array(_type(kind.value_type))
    if is_.is_timestamp(kind) or is_.is_date(kind):
        return DataType.datetime
    return getattr(DataType, _NAMES.get(str(kind), "string"))


_NAMES = {
    "bool": "boolean", "int8": "integer", "int16": "integer", "int32": "integer", "int64": "long",
    "float": "float", "double": "double", "binary": "binary",
}  # fmt: skip
