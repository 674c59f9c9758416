"""The public names: there, documented, lazy, and stable in their signatures."""

import inspect
import re
import subprocess
import sys
from types import ModuleType

import pytest

import consilience as cs

# DESIGN, section 4: what a user may rely on
SIGNATURES = {
    "read": ["path", "schema"],
    "write": ["content", "path"],
    "fit": ["family", "train", "config", "real", "pairs", "members", "resume"],
    "load": ["path"],
    "report": ["fitted", "obs", "path"],
}
VERBS = {
    "sample": ["obs", "targets", "n", "seed", "method", "observed"],
    "summarise": ["obs", "targets", "statistics", "n"],
    "impute": ["obs", "n", "seed"],
    "latent": ["obs"],
    "log_prob": ["obs", "targets"],
    "generate": ["n", "seed"],
    "save": ["path"],
}


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize("name", cs.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert name in dir(cs)
    found = getattr(cs, name)
    assert found is getattr(cs, name)
    if name != "__version__":
        assert inspect.getdoc(found)


def test_names_are_sorted_and_all_have_a_home():
    assert cs.__all__ == sorted(set(cs.__all__))
    homes = {*cs._HOMES, *cs._SUBPACKAGES, "__version__"}
    assert homes == set(cs.__all__)


def test_version_is_a_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", cs.__version__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'consilience' has no attribute 'reed'"):
        cs.reed  # noqa: B018 - the access is the test


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_of_the_functions(name):
    assert parameters(getattr(cs, name))[: len(SIGNATURES[name])] == SIGNATURES[name]


@pytest.mark.parametrize("name", VERBS)
def test_signatures_of_the_verbs_of_a_fitted_model(name):
    found = parameters(getattr(cs.Fitted, name))
    assert set(VERBS[name]) <= set(found), found
    assert found[0] == VERBS[name][0]


@pytest.mark.parametrize(
    "before",
    [
        "import consilience as cs",
        "import consilience as cs; cs.report",
        "import consilience.report, consilience as cs",
        "import consilience.report.page, consilience as cs",
        "import consilience as cs; cs.report; import consilience.report.page",
        "from consilience.report import page; import consilience as cs",
        "from consilience import report; import consilience as cs; assert report is cs.report",
    ],
)
def test_report_is_the_verb_whatever_was_imported_before(before):
    code = f"{before}\nimport inspect, sys\nassert inspect.isfunction(cs.report), cs.report\n"
    code += "from consilience.report.page import report\nassert cs.report is report\n"
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_no_name_but_report_is_both_a_verb_and_a_module():
    import importlib.util

    shared = {name for name in cs._HOMES if importlib.util.find_spec(f"consilience.{name}")}
    assert shared == {"report"}
    assert all(isinstance(getattr(cs, name), ModuleType) for name in cs._SUBPACKAGES)


def test_errors_that_are_requests_are_told_from_failures():
    errors = cs.errors
    requests = (errors.SchemaError, errors.DataError, errors.CapabilityError, errors.ModelFileError)
    assert all(issubclass(error, errors.RequestError) for error in requests)
    assert not issubclass(errors.TrainingError, errors.RequestError)
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), cs.ConsilienceError)
        assert name in errors.__doc__
    assert len(errors.__all__) <= 8
