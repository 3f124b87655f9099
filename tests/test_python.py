"""Objects in a session: what they show of themselves, strings as paths, and our errors where nothing is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reports import HOSTILE, LANGUAGES, VARIANTS, make_region, make_report

import surgeon
from surgeon.errors import SurgeonError
from surgeon.freeze.bundle import Bundle
from surgeon.region.patch import Patch
from surgeon.report.html import write_page


def test_the_package_lists_what_it_offers() -> None:
    assert dir(surgeon) == sorted(surgeon.__all__)
    assert {"apply", "cut", "perplexity", "Region"} <= set(dir(surgeon))
    assert all(getattr(surgeon, name) is not None for name in dir(surgeon))


def test_reprs_are_short_and_say_shape_and_share(tmp_path: Path) -> None:
    region = make_region()
    region.save(str(tmp_path / "r.region.safetensors"))
    loaded = surgeon.Region.load(str(tmp_path / "r.region.safetensors"))
    share = f"{100 * region.entries / region.numel:.3g} %"
    assert (
        repr(region) == repr(loaded) == f"Region({region.entries:,} of {region.numel:,} entries in 9 tensors, {share})"
    )
    name = "model.layers.0.mlp.down_proj.weight"
    mask = region[name]
    assert repr(mask).startswith(f"Mask({mask.entries:,} of 640 entries, ")
    assert "[16, 40]" in repr(mask)
    checkpoint = surgeon.Checkpoint.open("builtin:tiny30")
    shown = "Checkpoint(builtin:tiny30: llama, 3,391,400 parameters in 56 tensors, 1 file(s), 6.79 MB)"
    assert repr(checkpoint) == shown
    assert (
        repr(surgeon.compare("builtin:tiny30", "builtin:tiny30")) == "Comparison(builtin:tiny30, builtin:tiny30: equal)"
    )
    report = make_report()
    assert repr(report.plot("perplexity")) == "Figure(perplexity: What it did, by language)"
    with pytest.raises(SurgeonError, match="no figure 'perplexit'; did you mean 'perplexity'"):
        report.plot("perplexit")
    assert repr(report) == str(report)
    assert f"{len(VARIANTS) - 1 + 6} variants, {len(LANGUAGES)} languages, 1 of 2 expectations held" in repr(report)


def test_a_region_made_by_algebra_is_not_computed_to_be_shown() -> None:
    def load(name: str) -> object:
        raise AssertionError("computed")

    region = surgeon.Region({"a": (1000, 1000)}, load)  # type: ignore[arg-type]
    for made in (region, region & region, region | region, region - region, ~region):
        assert repr(made) == "Region(of 1,000,000 entries in 1 tensors; made when it is used)"
        assert "made when it is used" in made._repr_html_()


def test_a_notebook_shows_tables_and_no_text_can_leave_them() -> None:
    hostile = surgeon.Region.from_masks({"<script>alert(1)</script>": np.ones(3, np.bool_)})
    assert "<script" not in hostile._repr_html_()
    assert "<td" in make_region()._repr_html_()
    shown = make_report()._repr_html_()
    assert "<script" not in shown
    assert all(f">{name}<" in shown for name in ("base", "cut", "broken"))
    assert ">BF16<" in surgeon.Checkpoint.open("builtin:tiny30")._repr_html_()
    assert HOSTILE not in shown


def test_a_report_becomes_a_table() -> None:
    report = make_report()
    frame = report.to_pandas()
    assert len(frame) == len(report.perplexity) * len(LANGUAGES)
    indexed = frame.set_index(["variant", "language"])
    row = indexed.loc[("cut", "fr")]
    assert row["name"] == "French"
    assert (row["script"], row["family"]) == ("Latin", "Romance")
    base = report.perplexity["base"]["fr"].perplexity
    assert row["perplexity"] == report.perplexity["cut"]["fr"].perplexity
    assert row["ratio"] == pytest.approx(row["perplexity"] / base)
    assert math.isnan(indexed.loc[("broken", "ar"), "perplexity"])
    assert indexed.loc[("base", "fr"), "ratio"] == 1.0
    assert frame.to_csv().count("\n") == len(frame) + 1
    chosen = report.to_pandas("choice").set_index(["variant", "group"])
    assert chosen.loc[("cut", "fr"), ["value", "change", "worse", "unit", "beyond_chance"]].tolist() == [
        0.35, -0.4, "less", "", True,
    ]  # fmt: skip
    with pytest.raises(SurgeonError, match="measured: choice"):
        report.to_pandas("divergence")


def test_strings_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    report = make_report()
    report.save(str(tmp_path / "report.json"))
    for name in (str(tmp_path / "report.json"), str(tmp_path), "~/report.json", tmp_path / "report.json"):
        assert surgeon.Report.load(name).name == report.name
    make_region().save("~/r.region.safetensors")
    assert surgeon.Region.load("~/r.region.safetensors") == make_region()
    monkeypatch.setattr("surgeon.report.html.figures", lambda report: [])
    assert write_page(report, str(tmp_path / "page"))[0].is_file()


@pytest.mark.parametrize(
    "opened",
    [
        surgeon.Report.load, surgeon.Region.load, surgeon.Checkpoint.open, surgeon.apply, surgeon.plan_recipe,
        Patch.load, Bundle.load, surgeon.score, lambda name: surgeon.compare(name, name),
    ],
)  # fmt: skip
def test_what_is_not_there_is_our_error(opened: Callable[[str], object], tmp_path: Path) -> None:
    (tmp_path / "damaged.json").write_text("{", encoding="utf-8")
    for name in ("./nothing/here", str(tmp_path / "nothing.safetensors"), str(tmp_path / "damaged.json")):
        with pytest.raises(SurgeonError) as told:
            opened(name)
        assert Path(name).name in str(told.value)
