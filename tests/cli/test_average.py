"""`perdure report --average`: all formats, and what it does not go with."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Perdure
from tests.unit.test_averaging import write_run


def test_averages_over_data_sets_are_printed(perdure: Perdure, tmp_path: Path) -> None:
    for name in ("pets", "cars"):
        write_run(tmp_path / f"runs/{name}", name, 0.8, 0.6)
    answer = perdure("report", "runs", "--average")
    assert answer.code == 0
    assert answer.out.startswith("# Averages over 2 data sets\n")
    assert "| coop | 1 | 80.0 | 60.0 | 68.6 | 68.6 |" in answer.out
    document = json.loads(perdure("report", "runs", "--average", "--json").out)
    assert document["sets"] == ["cars", "pets"]
    table = perdure("report", "runs", "--average", "--format", "csv").out
    assert table.splitlines()[0] == "run,set,seeds,base,novel,harmonic,mean_harmonic"
    refused = perdure("report", "runs", "--average", "--against", "coop")
    assert refused.code == 2
    assert "goes with none of --suite" in refused.err
    answer = perdure("report", "nothing", "--average")
    assert answer.code == 2
    assert "is not a run directory" in answer.err
