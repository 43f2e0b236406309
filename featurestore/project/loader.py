"""Loading the definitions of a feature repo: ``features.py`` or the package ``features/``, and nothing else."""

from __future__ import annotations

import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from itertools import takewhile
from pathlib import Path
from types import CodeType, ModuleType

from featurestore.definitions import (
    Definition,
    FeatureSelection,
    FeatureService,
    FeatureView,
    ModelMetric,
    Monitor,
    OnDemandFeatureView,
    PushSource,
    RequestSource,
)
from featurestore.errors import DefinitionError, FeatureStoreError, InputError, RepositoryError


def load_definitions(root: Path) -> list[Definition]:
    """Import a feature repo's definitions and return them with all they refer to, sorted by kind and name.

    Raises RepositoryError when there are none or their import fails (the traceback trimmed to the user's own
    files), DefinitionError when two different ones share a name.
    """
    module_path, package_path = root / "features.py", root / "features" / "__init__.py"
    if module_path.is_file() and package_path.is_file():
        raise RepositoryError(f"{root} holds both features.py and features/.", hint="Keep one of them.")
    found = next((path for path in (module_path, package_path) if path.is_file()), None)
    if found is None:
        raise RepositoryError(
            f"{root} holds no features.py.", hint="Write your definitions there, or in the package features/."
        )
    modules = _import(found, root)
    return collect(value for module in modules for value in vars(module).values() if isinstance(value, Definition))


def collect(definitions: Iterable[Definition]) -> list[Definition]:
    """Return definitions with everything they refer to, each once, sorted by kind and name.

    Raises DefinitionError when two different ones share a kind and a name, or a feature view and an on-demand
    feature view share a name, and InputError for anything that is not a definition.
    """
    known: dict[tuple[str, str], Definition] = {}
    for definition in definitions:
        if not isinstance(definition, Definition):
            raise InputError(
                f"{definition!r} is not a definition.", hint="Pass objects: entities, sources, feature views, services."
            )
        for each in with_parts(definition):
            # Feature references are "view:feature" for both kinds of view, so these share one namespace.
            kind = FeatureView.kind if isinstance(each, OnDemandFeatureView) else each.kind
            other = known.setdefault((kind, each.name), each)
            if other is not each and other != each:
                raise DefinitionError(
                    f"Two definitions are called {each.name!r}: one {other.title} and another {each.title}.",
                    hint="Rename one of them, or use the same object in both places.",
                    name=each.name,
                )
    return sorted(known.values(), key=lambda each: (each.kind, each.name))


def parts_of(definition: Definition) -> tuple[Definition, ...]:
    """Return the definitions that one refers to itself."""
    if isinstance(definition, PushSource):
        return (definition.batch_source,)
    if isinstance(definition, FeatureView):
        return (*definition.entities, *definition.sources)
    if isinstance(definition, OnDemandFeatureView):
        return tuple(s if isinstance(s, RequestSource) else s.view for s in definition.inputs)
    if isinstance(definition, FeatureService):
        return tuple(f if isinstance(f, OnDemandFeatureView) else f.view for f in definition.features)
    if isinstance(definition, Monitor):
        labels = (check.label.feature for check in definition.metrics)
        return (definition.target, *(each.view for each in labels if isinstance(each, FeatureSelection)))
    return ()


def needs_of(definition: Definition) -> tuple[str, ...]:
    """Return the ``kind:name`` of the definitions that one refers to itself, those included that it names by texts."""
    named = [f"{FeatureView.kind}:{check.label.view}" for check in getattr(definition, "metrics", ())]
    return tuple(dict.fromkeys([*(part.key for part in parts_of(definition)), *named]))


def with_parts(definition: Definition) -> Iterable[Definition]:
    """Yield a definition's parts, each before the ones that refer to it, and the definition itself last."""
    for part in parts_of(definition):
        yield from with_parts(part)
    yield definition


def with_views(definition: Definition, other: Callable[[FeatureView], FeatureView]) -> Definition:
    """Return a definition with other feature views, at any depth, in place of those that it was made with."""

    def changed(part: Definition | FeatureSelection) -> Definition | FeatureSelection:
        return part.replaced(view=other(part.view)) if isinstance(part, FeatureSelection) else with_views(part, other)

    if isinstance(definition, FeatureView):
        return other(definition)
    if isinstance(definition, OnDemandFeatureView):
        return definition.replaced(inputs=tuple(map(changed, definition.inputs)))
    if isinstance(definition, FeatureService):
        return definition.replaced(features=tuple(map(changed, definition.features)))
    if isinstance(definition, Monitor):
        checks = tuple(
            check.replaced(label=check.label.replaced(feature=changed(check.label.feature)))
            if isinstance(check, ModelMetric) and isinstance(check.label.feature, FeatureSelection)
            else check
            for check in definition.checks
        )
        return definition.replaced(target=with_views(definition.target, other), checks=checks)
    return definition


def _import(path: Path, root: Path) -> list[ModuleType]:
    is_package = path.name == "__init__.py"
    name = f"featurestore_repo_{abs(hash(root.resolve())):x}"
    _forget(name)
    locations = [str(path.parent)] if is_package else None
    loader = _AsWritten(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader, submodule_search_locations=locations)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    finder = _Finder(name)
    sys.meta_path.insert(0, finder)
    try:
        spec.loader.exec_module(module)
        modules = [module]
        if is_package:
            for info in pkgutil.walk_packages([str(path.parent)], prefix=f"{name}."):
                modules.append(importlib.import_module(info.name))
    except FeatureStoreError as error:
        _forget(name)
        error.details.setdefault("traceback", _own_traceback(error, root))
        raise
    except BaseException as error:
        _forget(name)
        if isinstance(error, KeyboardInterrupt):
            raise
        said = str(error).replace(name, "features")  # what the user calls it
        raise RepositoryError(
            f"{path.relative_to(root)} cannot be imported: {type(error).__name__}{': ' * bool(said)}{said}",
            hint=_import_hint(error, name, root, is_package=is_package),
            traceback=_own_traceback(error, root),
        ) from None
    finally:
        sys.meta_path.remove(finder)
    return modules


class _AsWritten(SourceFileLoader):
    """Compiles what the file holds now, without Python's bytecode cache.

    The cache compares only the file's size and its time in whole seconds, and is used even where the file may not be
    read: a plan would show one code and be made from another.
    """

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder(MetaPathFinder):
    """Finds the modules of a package features/ as Python does, and has them loaded as they are written."""

    def __init__(self, package: str) -> None:
        self._prefix = f"{package}."

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname.startswith(self._prefix) else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _AsWritten(fullname, spec.loader.path)
        return spec


def _import_hint(error: BaseException, name: str, root: Path, *, is_package: bool) -> str:
    """Return what to do about a failed import; ``name`` is what the definitions are loaded as."""
    missing = (error.name or "").split(".")[0] if isinstance(error, ImportError) else ""
    # A module next to features.py is on no path: two repos may each have one of that name.
    is_beside = bool(missing) and ((root / f"{missing}.py").is_file() or (root / missing).is_dir())
    if is_package and (missing == "features" or (root / "features" / f"{missing}.py").is_file()):
        return "Inside the package features/ import with a leading dot: from .module import name."
    is_relative = isinstance(error, ImportError) and "relative import" in str(error)
    if not is_package and (is_relative or missing in ("features", name)):
        return (
            "Definitions in several files are a package: move features.py to features/__init__.py, the others next to "
            "it, and import with a leading dot: from .module import name."
        )
    if is_beside:
        return (
            f"A feature repo's code is features.py or the package features/ and nothing else: move {missing} into "
            f"features/, next to its __init__.py, and import it with a leading dot: from .{missing} import name."
        )
    if isinstance(error, ModuleNotFoundError) and missing and missing != name:
        return f"Install {missing} where fs runs, or take the import out."
    return "Fix the error in your definitions and run the command again."


def _forget(name: str) -> None:
    for loaded in [known for known in list(sys.modules) if known == name or known.startswith(f"{name}.")]:
        del sys.modules[loaded]


def _own_traceback(error: BaseException, root: Path) -> str:
    """Return the frames of the user's files only, with paths relative to the repo; "" where there are none.

    The error's own text is left out, because the message has it. A syntax error names its line and has no frame there.
    """
    own = str(root.resolve())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_in(frame.filename, own)]
    lines = traceback.format_list(frames)
    if isinstance(error, SyntaxError):
        lines += takewhile(lambda line: line.startswith(" "), traceback.format_exception_only(error))
    lines = [line.replace(f"{own}/", "") for line in lines]
    head = "Traceback (your files only, most recent call last):\n"
    return "".join([head, *lines]).rstrip() if lines else ""


def _is_in(filename: str, own: str) -> bool:
    if not Path(filename).is_absolute():
        return False  # "<frozen importlib._bootstrap>", "<string>": the repo may be the working directory
    path = Path(filename).resolve()
    return path.is_relative_to(own) and "site-packages" not in path.parts  # the repo may contain an environment
