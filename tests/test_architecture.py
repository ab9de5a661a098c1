"""The house rules, read off the code's imports: who may know whom, and which modules are pure."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "fluffle": ROOT / "shared/fluffle",
    "fluffle_aggregator": ROOT / "aggregator/fluffle_aggregator",
    "fluffle_worker": ROOT / "worker/fluffle_worker",
    "fluffle_helper": ROOT / "helper/fluffle_helper",
    "fluffle_cli": ROOT / "cli/fluffle_cli",
    "fluffle_spark": ROOT / "spark/fluffle_spark",
}
MAY_IMPORT = {
    "fluffle": set[str](),
    "fluffle_aggregator": {"fluffle"},
    "fluffle_worker": {"fluffle"},
    "fluffle_helper": {"fluffle"},
    "fluffle_cli": {"fluffle", "fluffle_aggregator", "fluffle_worker", "fluffle_helper"},
    "fluffle_spark": {"fluffle", "fluffle_worker"},
}
# A library that one module or package alone knows, so that it can be exchanged there.
ONE_IMPORTER = {
    "pika": "fluffle.rabbit",
    "msgpack": "fluffle.framing",
    "tensorflow": "fluffle_worker.keras_task",
    "keras": "fluffle_worker.keras_task",
    "httpx": "fluffle.management",
    "zstandard": "fluffle.compression",
    "prometheus_client": "fluffle.metrics",
    "starlette": "fluffle_cli.dashboard.server",
    "uvicorn": "fluffle_cli.dashboard.server",
    "trustme": "fluffle_cli.certificates",
    "tenseal": "fluffle.sealed.seal",
    "pyspark": "fluffle_spark",
    "fsspec": "fluffle.storage",
    "hdfs_native": "fluffle.storage",
    "requests": "fluffle.storage",
    "PIL": "fluffle_worker.data.stored.images",
}
PURE = {
    "fluffle.broker",
    *("fluffle.codecs.compressed", "fluffle.codecs.floats", "fluffle.codecs.int8", "fluffle.codecs.top_k"),
    "fluffle.codecs.tail",
    "fluffle.compression",
    "fluffle.errors",
    "fluffle.events",
    "fluffle.fields",
    "fluffle.framing",
    "fluffle.message",
    "fluffle.message_size",
    "fluffle.model",
    "fluffle.pieces",
    "fluffle.plan",
    "fluffle.policies",
    "fluffle.policy_faults",
    "fluffle.privacy",
    *(f"fluffle.privacy.{name}" for name in ("adaptive_clip", "correlated", "gaussian", "gaussian_noise")),
    *(f"fluffle.privacy.{name}" for name in ("grid", "normals", "plan", "promise", "skellam", "usefulness")),
    "fluffle.privacy.shares",
    "fluffle.record",
    "fluffle.record_wire",
    "fluffle.rights",
    *("fluffle.codecs.masked", "fluffle.codecs.sealed"),
    *(f"fluffle.secure.{name}" for name in ("closing", "committee", "fixed_point", "limbs", "measured")),
    *(f"fluffle.secure.{name}" for name in ("modulus", "plan", "sums", "surveyed", "weights")),
    "fluffle.sealed",
    *(f"fluffle.sealed.{name}" for name in ("parameters", "part", "plan", "residues")),
    "fluffle.sites",
    "fluffle.survey",
    "fluffle.table_model",
    *(
        f"fluffle.survey.{name}"
        for name in ("columns", "grid", "messages", "packing", "result", "shape", "statistics")
    ),
    "fluffle.topology",
    "fluffle.update",
    "fluffle.vector_math",
    "fluffle.wire",
    *(
        f"fluffle_aggregator.{name}"
        for name in (
            *(
                "accumulators",
                "averaging",
                "cached_buffers",
                "choices",
                "commit_schedule",
                "contributors",
                "effects",
                "folding",
                "global_model",
                "norms",
            ),
            *("goal", "intake", "judging", "local_steps", "reports", "site_reports", "throttle"),
            *("leader", "missing", "rules", "schedules", "sections", "staleness", "statistics", "transforms"),
            *("batch_sizes", "rule_memory", "told", "untold"),
            *("round_table", "survey", "surveying", "update_cache", "used_cache"),
        )
    ),
    *(
        f"fluffle_aggregator.secure.{name}"
        for name in (
            *("alternatives", "combinations", "masked_buffer", "opening", "securing", "state", "taking"),
            *("waiting", "weighing"),
        )
    ),
    *(
        f"fluffle_aggregator.sealed.{name}"
        for name in ("combinations", "fitting", "sealed_model", "sealed_sum")
    ),
    *(f"fluffle_aggregator.private.{name}" for name in ("clipped_sum", "combinations", "sums", "weighing")),
    "fluffle_aggregator.round_length",
    "fluffle.rabbit.acked_tags",
    *(
        f"fluffle_aggregator.gates.{name}"
        for name in (
            *(
                "fitting",
                "gate",
                "history",
                "limits",
                "norm",
                "privacy",
                "rates",
                "sealing",
                "sender",
                "share",
            ),
            *("site", "values"),
        )
    ),
    *(
        f"fluffle_aggregator.strategies.{name}"
        for name in (
            "cached",
            "fadas",
            "fedac",
            "fedasync",
            "fedavg",
            "fedbuff",
            "registry",
            "reuse",
            "ringleader",
            "strategy",
        )
    ),
    "fluffle_cli.dashboard.table",
    "fluffle_cli.data_check.drift",
    *(f"fluffle_cli.survey.{name}" for name in ("as_json", "terminal")),
    *(f"fluffle_cli.simulate.{name}" for name in ("availability", "devices", "population")),
    *(f"fluffle_cli.{name}" for name in ("held", "history", "over_seeds", "plain_json", "words")),
    *(f"fluffle_cli.privacy.{name}" for name in ("pictures", "planning")),
    "fluffle_cli.simulate.recommend",
    *(
        f"fluffle_cli.watching.{name}"
        for name in ("as_json", "findings", "privacy", "progress", "sealed", "sites", "state", "view")
    ),
    *(f"fluffle_worker.data.{name}" for name in ("augment", "choices", "duplicates", "holding_out", "rows")),
    "fluffle_worker.data.named",
    "fluffle_worker.data.weights",
    "fluffle_worker.data.stored.sharding",
    "fluffle_worker.insisting",
    *(f"fluffle_worker.pace.{name}" for name in ("batch", "speed", "steps")),
    "fluffle_worker.splits",
    "fluffle_worker.tabular.labels",
}
PURE_MAY_IMPORT = {
    *(
        "__future__",
        "abc",
        "base64",
        "bisect",
        "collections",
        "dataclasses",
        "enum",
        "fnmatch",
        "fractions",
        "functools",
        "hashlib",
        "html",
        "inspect",
    ),
    *(
        "array",
        "contextlib",
        "difflib",
        "itertools",
        "json",
        "math",
        "operator",
        "re",
        "shlex",
        "statistics",
        "struct",
    ),
    *("types", "typing"),
    *("ml_dtypes", "msgpack", "numpy", "pydantic", "xxhash", "zstandard"),
}


def modules() -> dict[str, Path]:
    """Every module of the product by its name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            found[name] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            module = node.module or ""
            yield from (f"{module}.{each.name}" for each in node.names) if module in PACKAGES else [module]


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_part_imports_only_the_parts_below_it(package: str) -> None:
    forbidden = set(PACKAGES) - MAY_IMPORT[package] - {package}

    found = [
        f"{name} imports {imported}"
        for name, path in modules().items()
        if is_in(name, package)
        for imported in imports(path)
        if any(is_in(imported, other) for other in forbidden)
    ]

    assert found == []


@pytest.mark.parametrize("library", ONE_IMPORTER)
def test_a_library_that_may_change_has_one_importer(library: str) -> None:
    strangers = [
        name
        for name, path in modules().items()
        if any(is_in(imported, library) for imported in imports(path))
        and not is_in(name, ONE_IMPORTER[library])
    ]

    assert strangers == []


def test_pure_modules_import_no_clock_no_input_and_no_output() -> None:
    known = modules()
    missing = PURE - set(known)

    found = [
        f"{name} imports {imported}"
        for name in PURE - missing
        for imported in imports(known[name])
        if imported not in PURE and imported.partition(".")[0] not in PURE_MAY_IMPORT
    ]

    assert missing == set()
    assert found == []


def test_no_module_is_longer_than_400_lines() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))

    long = [str(path) for path in [*modules().values(), *tests] if len(path.read_text().splitlines()) > 400]

    assert long == []


def without_tensorflow(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program where an import of TensorFlow or Keras fails."""
    program = (
        "import runpy, sys\n"
        "for name in ('tensorflow', 'keras', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *command], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "command",
    [
        ["fluffle_cli", "--help"],
        ["fluffle_cli", "worker", "--help"],
        ["fluffle_cli", "evaluator", "--help"],
        ["fluffle_cli", "demo", "--help"],
        ["fluffle_aggregator", "--help"],
        ["fluffle_worker", "--help"],
        ["fluffle_helper", "--help"],
    ],
    ids=" ".join,
)
def test_help_needs_no_tensorflow(command: list[str]) -> None:
    result = without_tensorflow(*command)

    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["trace", "w/r/1"],
        ["rejected", "list"],
        ["model", "list"],
        ["model", "export", "--out", "model.safetensors"],
        ["report", "run", "--from-broker"],
    ],
    ids=" ".join,
)
def test_a_command_that_looks_at_a_federation_needs_no_tensorflow(command: list[str], tmp_path: Path) -> None:
    nobody = ["--broker-url", "amqp://127.0.0.1:1", "--connect-timeout-s", "0.1"]

    result = without_tensorflow("fluffle_cli", *command, *nobody, cwd=tmp_path)

    # As far as it gets without a broker.
    assert result.returncode == 2, result.stderr
    assert "127.0.0.1:1" in result.stderr
    assert "tensorflow" not in result.stderr
    assert "keras" not in result.stderr


def test_the_version_is_shown_without_tensorflow() -> None:
    result = without_tensorflow("fluffle_cli", "--version")

    assert (result.returncode, result.stdout) == (0, f"fluffle {version('fluffle')}\n")
