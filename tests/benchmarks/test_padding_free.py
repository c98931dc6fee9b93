from __future__ import annotations

from tests.benchmarks.padding_free import ORDERS, PRECISIONS, table
from tests.benchmarks.rounds import Record


def test_the_table_has_both_orders_in_both_precisions() -> None:
    measured = {
        f"{precision} {order} {packed}": {"rows_per_second": 10.0 + 5 * packed}
        for precision in PRECISIONS
        for order in ORDERS
        for packed in (False, True)
    }
    lines = table(Record("padding-free", {}, {}, [measured] * 2)).splitlines()
    assert len(lines) == 2 + len(ORDERS) * len(PRECISIONS)
    assert lines[2] == "| float32, random | 10.0 (10.0 to 10.0) | 15.0 (15.0 to 15.0) | 1.50 (1.50 to 1.50) |"
