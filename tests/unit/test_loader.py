"""Loading a feature repo: what counts as a definition, and what the user sees when their code fails."""

from __future__ import annotations

import os
import sys

import pytest

from featurestore.errors import DefinitionError, RepositoryError
from featurestore.project.loader import load_definitions

HEAD = """
from featurestore import Entity, FeatureService, FeatureView, Field
from featurestore import ParquetSource, PushSource, RequestSource, on_demand_feature_view
from featurestore.types import Float64, Int64, String
"""
VIEW = (
    HEAD
    + """
carrier = Entity("carrier", {"carrier": String})
view = FeatureView("delays", entities=[carrier], source=PushSource("pushed", ParquetSource("flights", "f", "t")),
                   schema=[Field("delay", Float64)])
"""
)


def write(root, text, name="features.py"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def names(found):
    return [(each.kind, each.name) for each in found]


def test_everything_a_definition_refers_to_comes_along(tmp_path):
    write(tmp_path, VIEW.replace("view = ", "service = FeatureService('model', [").rstrip() + "])")
    assert names(load_definitions(tmp_path)) == [
        ("entity", "carrier"),
        ("feature_service", "model"),
        ("feature_view", "delays"),
        ("push_source", "pushed"),
        ("source", "flights"),
    ]


def test_on_demand_functions_and_request_sources_come_along(tmp_path):
    write(
        tmp_path,
        VIEW
        + """
@on_demand_feature_view(sources=[view, RequestSource("request", [Field("x", Int64)])], schema=[Field("y", Float64)])
def twice(inputs):
    return {"y": [2 * x for x in inputs["x"]]}
""",
    )
    found = load_definitions(tmp_path)
    assert ("request_source", "request") in names(found)
    assert next(each for each in found if each.name == "twice").function({"x": [2]}) == {"y": [4]}


def test_packages_are_loaded_whole_with_relative_imports(tmp_path):
    write(tmp_path, "", "features/__init__.py")
    write(tmp_path, VIEW, "features/delays.py")
    write(tmp_path, "from ..delays import carrier\n" + HEAD, "features/more/__init__.py")
    write(tmp_path, "raise RuntimeError('outside of features/')", "other.py")
    assert ("feature_view", "delays") in names(load_definitions(tmp_path))


def test_a_repo_is_read_afresh_each_time(tmp_path):
    write(tmp_path, VIEW)
    load_definitions(tmp_path)
    write(tmp_path, VIEW.replace('"delays"', '"later"'))
    assert ("feature_view", "later") in names(load_definitions(tmp_path))


@pytest.mark.parametrize("name", ["features.py", "features/__init__.py", "features/sub/delays.py"])
def test_an_edit_of_equal_length_within_a_second_is_seen(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for package in ("features", "features/sub")[: name.count("/")]:
        write(tmp_path, "", f"{package}/__init__.py")
    write(tmp_path, VIEW, name)
    os.utime(tmp_path / name, (1_700_000_000, 1_700_000_000))
    load_definitions(tmp_path)
    write(tmp_path, VIEW.replace('"delays"', '"weight"'), name)
    os.utime(tmp_path / name, (1_700_000_000, 1_700_000_000))
    assert ("feature_view", "weight") in names(load_definitions(tmp_path))


def test_loading_leaves_the_path_alone(tmp_path):
    write(tmp_path, VIEW)
    before = list(sys.path), list(sys.meta_path)
    load_definitions(tmp_path)
    assert (sys.path, sys.meta_path) == before
    assert "features" not in sys.modules


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(RepositoryError, match=r"features\.py"):
        load_definitions(tmp_path)


def test_two_homes_are_refused(tmp_path):
    write(tmp_path, VIEW)
    write(tmp_path, "", "features/__init__.py")
    with pytest.raises(RepositoryError, match="both"):
        load_definitions(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def broken(:\n", ["SyntaxError"]),
        ("import no_such_module_anywhere", ["ModuleNotFoundError", "no_such_module_anywhere"]),
        ("from features.delays import x", ["leading dot"]),
        ("def inner():\n    return 1 / 0\n\ninner()", ["ZeroDivisionError"]),
        ("raise SystemExit(3)", ["SystemExit"]),
    ],
)
def test_a_failing_import_shows_the_users_own_frames(tmp_path, text, words):
    write(tmp_path, text)
    with pytest.raises(RepositoryError) as caught:
        load_definitions(tmp_path)
    for word in words:
        assert word in str(caught.value)
    trace = caught.value.details["traceback"]
    assert str(tmp_path) not in trace
    assert "importlib" not in trace
    assert "loader.py" not in trace
    if "inner" in text:
        assert 'File "features.py", line 2, in inner' in trace


NO_RELATIVE = "a package: move features.py to features/__init__.py"


@pytest.mark.parametrize(
    ("files", "frames", "message", "hint"),
    [
        (
            {"features.py": "x = 1\ndef broken(:\n"},
            ['File "features.py", line 2', "    def broken(:"],
            "features.py cannot be imported: SyntaxError: invalid syntax (features.py, line 2)",
            "Fix the error",
        ),
        (
            {"features.py": "\n  x = 1\n"},
            ['File "features.py", line 2', "    x = 1"],
            "features.py cannot be imported: IndentationError: unexpected indent (features.py, line 2)",
            "Fix the error",
        ),
        (
            {"features/__init__.py": "from .sub import x", "features/sub.py": "x = ("},
            [
                'File "features/__init__.py", line 1, in <module>',
                "    from .sub import x",
                'File "features/sub.py", line 1',
                "    x = (",
            ],
            "features/__init__.py cannot be imported: SyntaxError: '(' was never closed (sub.py, line 1)",
            "Fix the error",
        ),
        (
            {"features/__init__.py": "from .more import x"},
            ['File "features/__init__.py", line 1, in <module>', "    from .more import x"],
            "features/__init__.py cannot be imported: ModuleNotFoundError: No module named 'features.more'",
            "Fix the error",
        ),
        (
            {"features/__init__.py": "import sub", "features/sub.py": ""},
            ['File "features/__init__.py", line 1, in <module>', "    import sub"],
            "features/__init__.py cannot be imported: ModuleNotFoundError: No module named 'sub'",
            "leading dot",
        ),
        (
            {"features.py": "import helpers_beside", "helpers_beside.py": ""},
            ['File "features.py", line 1, in <module>', "    import helpers_beside"],
            "features.py cannot be imported: ModuleNotFoundError: No module named 'helpers_beside'",
            "move helpers_beside into features/",
        ),
        (
            {"features.py": "from .sub import x", "sub.py": ""},
            ['File "features.py", line 1, in <module>', "    from .sub import x"],
            "features.py cannot be imported: ImportError: attempted relative import with no known parent package",
            NO_RELATIVE,
        ),
        (
            {"features.py": "import no_such_module_anywhere"},
            ['File "features.py", line 1, in <module>', "    import no_such_module_anywhere"],
            "features.py cannot be imported: ModuleNotFoundError: No module named 'no_such_module_anywhere'",
            "Install no_such_module_anywhere",
        ),
        (
            {"features.py": "raise BaseException"},
            ['File "features.py", line 1, in <module>', "    raise BaseException"],
            "features.py cannot be imported: BaseException",
            "Fix the error",
        ),
    ],
)
def test_a_failing_import_is_told_once_with_the_users_frames_alone(tmp_path, monkeypatch, files, frames, message, hint):
    monkeypatch.chdir(tmp_path)  # a frame of <frozen importlib> is no file of the working directory
    for name, text in files.items():
        write(tmp_path, text, name)
    with pytest.raises(RepositoryError) as caught:
        load_definitions(tmp_path)
    assert caught.value.message == message
    assert hint in caught.value.hint
    head, *lines = caught.value.details["traceback"].splitlines()
    assert head == "Traceback (your files only, most recent call last):"
    # Of the carets below an expression each Python has its own idea.
    assert [line.strip() for line in lines if set(line) - set(" ^~")] == list(map(str.strip, frames))


def test_a_failure_before_the_first_line_has_no_frames(tmp_path):
    write(tmp_path, "x = 1\0")
    with pytest.raises(RepositoryError, match="null bytes") as caught:
        load_definitions(tmp_path)
    assert "<frozen" not in caught.value.details["traceback"]


def test_frames_of_an_environment_within_the_repo_are_not_the_users(tmp_path, monkeypatch):
    write(tmp_path, "def fail():\n    raise ValueError('deep')\n", ".venv/lib/site-packages/dependency_of_mine.py")
    monkeypatch.syspath_prepend(str(tmp_path / ".venv/lib/site-packages"))
    write(tmp_path, "import dependency_of_mine\n\ndependency_of_mine.fail()\n")
    with pytest.raises(RepositoryError, match="deep") as caught:
        load_definitions(tmp_path)
    trace = caught.value.details["traceback"]
    assert 'File "features.py", line 3' in trace
    assert "site-packages" not in trace


def test_a_wrong_definition_shows_where_it_was_made(tmp_path):
    write(tmp_path, HEAD + "\ncarrier = Entity('Carrier', {'c': String})")
    with pytest.raises(DefinitionError, match="Carrier") as caught:
        load_definitions(tmp_path)
    assert 'File "features.py", line 6' in caught.value.details["traceback"]


def test_two_different_definitions_of_one_name_are_refused(tmp_path):
    write(tmp_path, VIEW + "\nother = Entity('carrier', {'code': String})")
    with pytest.raises(DefinitionError, match="Two definitions are called 'carrier'"):
        load_definitions(tmp_path)


def test_equal_definitions_of_one_name_are_one(tmp_path):
    write(tmp_path, VIEW + "\nother = Entity('carrier', {'carrier': String})")
    assert names(load_definitions(tmp_path)).count(("entity", "carrier")) == 1


def test_both_kinds_of_view_share_their_names(tmp_path):
    write(
        tmp_path,
        VIEW
        + """
@on_demand_feature_view(sources=[view], schema=[Field("y", Float64)], name="delays")
def twice(inputs):
    return inputs
""",
    )
    with pytest.raises(DefinitionError, match="'delays'"):
        load_definitions(tmp_path)
