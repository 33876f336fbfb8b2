"""The records of the repository, which the installed package does not hold."""

from pathlib import Path

from benchmark_adapters.report.summary import read_records

FOLDER = Path(__file__).parents[1] / "benchmark_adapters" / "records"


def committed_records():
    return read_records(sorted(FOLDER.glob("*.json")))
