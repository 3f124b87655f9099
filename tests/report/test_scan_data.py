"""The scan in the report: small, exact enough, and a line stays a line however wide the model."""

from __future__ import annotations

import numpy as np
import pytest

from surgeon.region.dimensions import Trace
from surgeon.report.regions import MOST_COLUMNS, Scan, scan_report


def test_shares_come_back_role_by_role_and_layer_by_layer() -> None:
    generator = np.random.default_rng(0)
    traces = [
        Trace(layer, role, generator.random(50) ** 4)
        for layer, role in ((1, "norm"), (0, "mlp.down"), (None, "embed"), (1, "attn.q"), (0, "attn.q"))
    ]
    scan = scan_report(traces)
    assert scan is not None
    assert scan.rows == [(0, "attn.q"), (1, "attn.q"), (0, "mlp.down"), (1, "norm")]
    by_row = {(trace.layer, trace.role): trace.shares for trace in traces}
    expected = np.stack([by_row[row] for row in scan.rows])
    np.testing.assert_allclose(np.sqrt(scan.shares()), np.sqrt(expected), atol=0.5 / 255 + 1e-9)
    again = Scan.model_validate_json(scan.model_dump_json())
    np.testing.assert_array_equal(again.shares(), scan.shares())


@pytest.mark.parametrize("hidden", [MOST_COLUMNS, MOST_COLUMNS + 1, 4096, 5000])
def test_one_bright_dimension_stays_as_bright_in_a_wide_model(hidden: int) -> None:
    shares = np.full(hidden, 0.01)
    shares[hidden - 1] = 0.9
    scan = scan_report([Trace(0, "attn.o", shares)])
    assert scan is not None
    assert scan.columns <= MOST_COLUMNS
    assert scan.columns * scan.width >= hidden
    assert scan.shares()[0, (hidden - 1) // scan.width] == pytest.approx(0.9, abs=0.005)
    assert (scan.shares()[0, :-1] < 0.02).all()


def test_nothing_in_layers_is_no_scan() -> None:
    assert scan_report([]) is None
    assert scan_report([Trace(None, "embed", np.zeros(4))]) is None
