"""The page is one escaped file that fetches nothing, whatever the data are called."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from consilience import analysis
from consilience.data.observations import Observations
from consilience.errors import DataError
from consilience.report import card, report

EVIL = '<script>alert("x")</script>|`*_\n# head'
RECORD = {
    "rows": 40,
    "selected_weights_on_these_rows": True,
    "given_the_rest": {"labels": {"levels": [0.68], "coverage": [0.7], "nlpd": 1.0, "cells": 80, "inside_band": True}},
}
HISTORY = [
    {"step": s, "train/total": 9.0 / (s + 1), "validation/total": 10.0 / (s + 1), "train/nll/spectrum": 8.0}
    for s in range(5)
]


class Outline(HTMLParser):
    """Tags, sources and text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    outline = Outline()
    outline.feed(path.read_text(encoding="utf-8"))
    return outline


@pytest.fixture(scope="module")
def page(fakes, world, tmp_path_factory):
    train, test = world.draw(260, seed=40), world.draw(80, seed=41)
    test = Observations.from_arrays(
        test.schema,
        {m: p.value for m, p in test.parts.items()},
        sigma={m: p.sigma for m, p in test.parts.items()},
        ids=[f"{EVIL}{i}" for i in range(len(test))],
    )
    fitted = fakes.Fake(calibration=RECORD, history=HISTORY)
    fitted.provenance = {**fitted.provenance, "note": EVIL}
    results = [
        analysis.compare(fitted, train, test, ["spectrum"], baselines=[analysis.MeanBaseline()], n=50),
        analysis.imputation(fitted, test, n=20),
    ]
    path = tmp_path_factory.mktemp("page") / "report.html"
    report(fitted, test, path, train=train, title=f"Title {EVIL}", results=results)
    return path


def test_page_has_every_section_and_is_alone_in_its_folder(page):
    outline = read(page)
    text = "".join(outline.text)
    for title in (
        "In words", "In numbers", "Was every modality heard?", "Who told?",
        "Beside simpler methods", "Can the error bars be believed?", "Objects with gaps",
        "Posterior of one object", "Reconstruction", "Latent map", "Unusual objects", "Imputation", "Training",
        "Model card",
    ):  # fmt: skip
        assert title in text
    assert "solMass" in text and "latent_dim" in text and "flatters" in text and "70.0 %" in text
    assert outline.tags.count("img") >= 10 and [file.name for file in page.parent.iterdir()] == ["report.html"]


def test_page_fetches_nothing_and_runs_its_own_script_alone(page):
    outline, raw = read(page), page.read_text(encoding="utf-8")
    assert "link" not in outline.tags and outline.tags.count("iframe") == 0
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", raw, flags=re.DOTALL)
    (own,) = (text for kind, text in scripts if "application/json" not in kind)
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in raw and raw.count("script-src") == 1
    assert len(scripts) == 1 + outline.tags.count("img") and all(
        json.loads(text) is not None for _, text in scripts[:-1]
    )
    assert all(link.startswith(("data:image/", "#")) for link in outline.links)
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page.read_text())
    for link in outline.links:
        if link.startswith("data:image/svg"):
            svg = base64.b64decode(link.split(",", 1)[1])
            assert b"<script" not in svg and b"</svg>" in svg


def test_text_from_data_is_escaped(page):
    raw = page.read_text()
    assert raw.count("<script>") == 1 and "&lt;script&gt;" in raw
    assert EVIL not in raw


def test_a_model_without_capabilities_still_gets_a_page(fakes, world, tmp_path):
    fitted = fakes.Fake(capabilities=frozenset(), refuse=frozenset(world.schema.names))
    report(fitted, world.draw(30, seed=42), tmp_path / "r.html", train=world.draw(300, seed=43))
    text = "".join(read(tmp_path / "r.html").text)
    assert "What is not shown" in text and "outliers: Expected" in text and "have not been checked" in text


def test_an_older_page_survives_a_failure(fakes, world, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="folder"):
        report(fakes.Fake(refuse=frozenset(world.schema.names)), world.draw(20, seed=1), tmp_path / "no" / "r.html")
    (tmp_path / "r.html").write_text("old")
    monkeypatch.setattr(fakes.Fake, "latent", lambda *_: np.zeros(0)[3])
    with pytest.raises(IndexError):
        report(fakes.Fake(), world.draw(20, seed=1), tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "old"


def test_card_is_markdown_that_data_cannot_break(fakes):
    fitted = fakes.Fake(calibration=RECORD)
    fitted.provenance = {"family": "LinearGaussian", "note": EVIL, "nested": {"deep": [1, 2]}}
    text = card(fitted)
    assert text.startswith("# Model card: LinearGaussian\n")
    assert "| nested.deep | 1, 2 |" in text and "<script>" not in text and "\n# head" not in text
    rows = [line for line in text.splitlines() if line.startswith("| note")]
    assert len(rows) == 1 and len(re.findall(r"(?<!\\)\|", rows[0])) == 3
    assert "wavelength 1000 to 3000 Angstrom, 24 linear bins" in text and "mass, redshift" in text
    assert "have not been checked" in card(fakes.Fake())
