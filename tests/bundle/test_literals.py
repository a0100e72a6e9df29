"""Overrides of a bundle's config: nothing in them is ever evaluated."""

from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from medsaga.bundle.literals import literal, literals

EVIL = "$__import__('builtins').setattr(__import__('builtins'), 'ran', True)"
NAMES = [EVIL, "@secret", "%secret", "a#secret", "@::secret", "x::y", "%/etc/passwd.json"]


@pytest.fixture(autouse=True)
def nothing_ran():
    import builtins

    yield
    assert not hasattr(builtins, "ran")


def test_monai_would_evaluate_what_lies_deep_in_a_list():
    """Why the check is needed."""
    parser = ConfigParser({"secret": 42, "data": None})
    parser.update({"data": [{"image": "$1 + 1", "label": "@secret", "patient": "a#b"}]})
    assert parser.get_parsed_content("data") == [{"image": 2, "label": 42, "patient": "a::b"}]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_cases_stay_as_they_are(name):
    cases = [{"image": name, "label": {name: name}, "patient": [name, {"_target_": "os.getcwd"}]}]
    parser = ConfigParser(
        {"secret": 42, "data": None, "parts": None, "all": "$@data + @parts['test']", "same": "@data"}
    )
    parser.update(literals({"data": cases, "parts": {"train": cases, "test": cases}}))
    assert parser.get_parsed_content("data") == tuple(cases)
    assert parser.get_parsed_content("same") == tuple(cases)
    assert parser.get_parsed_content("all") == tuple(cases) * 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [lambda n: n, lambda n: {"a": n}, lambda n: {"a": {"b": n}}])
def test_other_strings_that_mean_something_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match="bundle_root.*must not begin with"):
        literals({"bundle_root": value(name)})


@pytest.mark.parametrize("key", ["_target_", "__local_refs", "a#b", "a::b", "$x", "", 1])
def test_keys_that_mean_something_are_refused(key):
    with pytest.raises(ValueError, match="a key has letters, digits and _ only"):
        literal({key: "os.getcwd"}, "parts")


def test_plain_values_stay():
    plain = {"device": "cuda:0", "lr": 0.1, "resume": False, "patience": None, "dir": "/data/a b/50% of m@x"}
    assert literals(plain) == plain
    with pytest.raises(TypeError, match="Path"):
        literal(Path("x"), "dir")


def test_results_of_expressions_are_not_evaluated_again():
    """Bundles' own commands: data folders and lists of files come from expressions."""
    parser = ConfigParser({"data": f"$[{{'image': {EVIL!r}}}]", "same": "@data", "first": "$@data[0]['image']"})
    assert parser.get_parsed_content("same") == [{"image": EVIL}]
    assert parser.get_parsed_content("first") == EVIL
