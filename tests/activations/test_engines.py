"""Ranks and workers on a Ray cluster make the store that one process makes, whoever of them dies."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from interp_toolkit.activations import ActivationStore, extract, prepare_extraction
from interp_toolkit.activations import engines as engines_module
from interp_toolkit.activations.attempts import begin_attempt
from interp_toolkit.activations.disk import read_record
from interp_toolkit.activations.engines import share_of_rank
from interp_toolkit.activations.ledger import Ledger
from interp_toolkit.activations.prepared import work_off
from interp_toolkit.activations.workers import Recipe, ShardWorker
from interp_toolkit.errors import InterpWarning, ModelLoadError, RunError, StoreError
from interp_toolkit.model.demo import load_without_tokenizer
from interp_toolkit.model.layout import layout_of
from interp_toolkit.model.verify import verified
from tiny import tiny_model

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'interpretability-toolkit[distributed]'")
psutil = pytest.importorskip("psutil", reason="psutil tells which process belongs to which node")

DOCUMENTS = [[3 + (7 * i + j * j) % 96 for j in range(4 + i % 37)] for i in range(160)]
OPTIONS: dict[str, Any] = {"sites": ["resid_post.2", "L1H2"], "shard_tokens": 48, "progress": False}
VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    *(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "MAX", "STEP")),
)


pytestmark = pytest.mark.xdist_group("cluster")  # one process starts it, not each


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model, without a tokenizer."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(saved: Path) -> PreTrainedModel:
    return load_without_tokenizer(saved)


@pytest.fixture(scope="module")
def digest(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the local engine makes."""
    store = extract(model, DOCUMENTS, path=tmp_path_factory.mktemp("local") / "store", **OPTIONS)
    assert len(Ledger(store.path).committed()) > 70
    assert store.digest is not None
    return store.digest


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of three nodes on this machine: a head that computes nothing, and two with one CPU each."""
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"object_store_memory": 80 << 20, "include_dashboard": False}
    head = {"num_cpus": 0, "_system_config": {"prestart_worker_first_driver": False}, **node}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            made.add_node(num_cpus=1, **node)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def connected(cluster: Any) -> Any:
    if not ray.is_initialized():
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    return cluster


def store_in(path: Path, model: PreTrainedModel, done: int = 0) -> Ledger:
    """A store with its plan, in which some shards are written."""
    extraction = prepare_extraction(
        model, DOCUMENTS, path=path, **{name: value for name, value in OPTIONS.items() if name != "progress"}
    )
    ledger = extraction._published()
    work_off(ledger, extraction.wiring, extraction.configuration, range(done), progress=False)
    return ledger


def eventually(found: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until, f"never: {what}"
        time.sleep(0.005)
    return value


def commits(path: Path) -> int:
    return len(list((path / "commits").glob("*.json"))) if (path / "commits").exists() else 0


def writing(path: Path) -> set[int]:
    """The processes that write shards right now, as the store has it."""
    found = set()
    for record in (path / "attempts").glob("*.json"):
        try:
            found.add(read_record(record)["process"])
        except StoreError:  # it has just ended
            continue
    return found - {os.getpid()}


@contextmanager
def once_begun(path: Path, act: Callable[[], None]) -> Iterator[None]:
    """While the block runs, do something as soon as a few more shards are written."""
    errors: list[BaseException] = []
    before = commits(path)

    def wait() -> None:
        try:
            eventually(lambda: commits(path) >= before + 3, "three shards were written")
            act()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        if errors:
            raise errors[0]


# --- ranks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environments", "world"),
    [
        ([{"RANK": f"{n}", "WORLD_SIZE": "4"} for n in range(4)], 4),
        ([{"SLURM_PROCID": f"{n}", "SLURM_NTASKS": "3"} for n in range(3)], 3),
        ([{"SLURM_ARRAY_TASK_ID": f"{n}", "SLURM_ARRAY_TASK_COUNT": "2"} for n in range(2)], 2),
        (
            [
                {
                    "SLURM_ARRAY_TASK_ID": f"{n}",
                    "SLURM_ARRAY_TASK_COUNT": "3",
                    "SLURM_ARRAY_TASK_MIN": "1",
                    "SLURM_ARRAY_TASK_STEP": "4",
                    "SLURM_PROCID": "0",
                    "SLURM_NTASKS": "1",
                }
                for n in (1, 5, 9)
            ],
            3,
        ),
        (
            [
                {"SLURM_ARRAY_TASK_ID": f"{n}", "SLURM_ARRAY_TASK_COUNT": "2", "RANK": f"{m}", "WORLD_SIZE": "3"}
                for n in range(2)
                for m in range(3)
            ],
            6,
        ),
    ],
    ids=["torchrun", "srun", "array", "array from 1 in steps of 4", "torchrun in an array"],
)
def test_every_shard_belongs_to_one_rank(environments: list[dict[str, str]], world: int) -> None:
    shares = [share_of_rank(range(5, 36), environment) for environment in environments]
    assert len(shares) == world
    assert sorted(shard for share in shares for shard in share) == list(range(5, 36))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "RANK and WORLD_SIZE or SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT or SLURM_PROCID"),
        ({"RANK": "0"}, "needs RANK and WORLD_SIZE"),
        ({"RANK": "3", "WORLD_SIZE": "3"}, "RANK is 3, but WORLD_SIZE is 3"),
        ({"RANK": "", "WORLD_SIZE": "3"}, "RANK is '' and WORLD_SIZE is '3': both are numbers"),
        (
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3"},
            "SLURM_ARRAY_TASK_ID is 7, but SLURM_ARRAY_TASK_COUNT is 2: number the tasks without gaps",
        ),
        (
            {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_STEP": "2"},
            "number the tasks without gaps",
        ),
    ],
)
def test_a_process_that_is_no_rank_is_told_what_is_missing(environment: dict[str, str], message: str) -> None:
    with pytest.raises(RunError, match=message):
        share_of_rank(range(4), environment)


def test_extract_without_the_variables_of_a_rank_says_so_and_keeps_the_plan(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RunError, match="as torchrun and Slurm set them"):
        extract(model, DOCUMENTS, path=tmp_path / "store", engine="rank", **OPTIONS)


# Processes that are forked from one begin at the same moment, and need not import everything again.
RANKS = """
import json, os, sys, traceback
import torch
torch.set_num_threads(1)
from interp_toolkit import extract, verify
from interp_toolkit.model.demo import load_without_tokenizer

saved, documents, options, groups = json.loads(sys.argv[1])
model = load_without_tokenizer(saved)
verify(model)
for path, environments in groups:
    wait, go = os.pipe()
    ranks = []
    for environment in environments:
        ranks.append(os.fork())
        if ranks[-1] == 0:
            try:
                os.close(go)
                os.read(wait, 1)
                os.environ.update(environment)
                extract(model, documents, path=path, engine="rank", **options)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
    os.close(go)
    assert not any([os.waitpid(rank, 0)[1] for rank in ranks]), path
"""


def test_ranks_that_begin_at_once_make_one_store_and_the_last_one_seals_it(
    saved: Path, digest: str, tmp_path: Path
) -> None:
    array = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "1"}
    groups: dict[Path, list[dict[str, str]]] = {
        tmp_path / "torchrun": [{"RANK": f"{n}", "WORLD_SIZE": "3"} for n in range(3)],
        tmp_path / "array": [{"SLURM_ARRAY_TASK_ID": f"{n}", **array} for n in (1, 2)],
    }
    arguments = json.dumps([str(saved), DOCUMENTS, OPTIONS, [(str(path), group) for path, group in groups.items()]])
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", RANKS, arguments], env=clean, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    for path, environments in groups.items():
        assert ActivationStore(path, verify="full").digest == digest
        assert len(list((path / "plan").iterdir())) == 2, "the plans of those who lost are removed"
        ledger, world = Ledger(path), len(environments)
        writers = [{ledger.commit(shard).attempt for shard in ledger.committed()[rank::world]} for rank in range(world)]
        assert [len(writer) for writer in writers] == [1] * world, "each rank writes its own shards"
        assert len(set.union(*writers)) == world


# --- a worker, in this process ------------------------------------------------------------------------------------


def test_a_worker_computes_as_the_sender_does(saved: Path, tmp_path: Path) -> None:
    eager = load_without_tokenizer(saved, attn_implementation="eager")
    layout = dataclasses.replace(layout_of(eager), model_type="of my own")
    extraction = prepare_extraction(eager, DOCUMENTS[:9], path=tmp_path / "store", sites="resid_post", layout=layout)
    ledger = extraction._published()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        recipe = Recipe.of(extraction.wiring, ledger, begin_attempt(ledger.path))
        torch.set_num_threads(threads)
        worker = ShardWorker(recipe)
        worker.load()
        assert worker.write(0) == sum(map(len, DOCUMENTS[:9])), "all documents are in one shard"
        assert worker.write(0) == 0, "it is written already"
    finally:
        torch.set_num_threads(threads)
    assert worker._model.config._attn_implementation == "eager"
    assert worker._computer.wiring.layout == layout
    assert ledger.commit(0).environment["threads"] == 2
    assert ledger.commit(0).environment["versions"] == extraction.configuration.provenance.versions
    assert set((ledger.path / "attempts").iterdir()) == {ledger.path / f"attempts/{recipe.witness}.json"}


def test_a_worker_refuses_a_model_with_other_weights(saved: Path, tmp_path: Path) -> None:
    changed = load_without_tokenizer(saved)
    with torch.no_grad():
        changed.lm_head.weight[0, 0] += 1
    ledger = store_in(tmp_path / "store", changed)
    worker = ShardWorker(Recipe.of(verified(changed), ledger, begin_attempt(ledger.path)))
    with pytest.raises(ModelLoadError, match=r"has other weights than the one that was given.*save_pretrained"):
        worker.load()


def test_a_worker_refuses_a_folder_that_is_not_the_one_of_the_sender(model: PreTrainedModel, tmp_path: Path) -> None:
    ledger, twin = (store_in(tmp_path / name, model) for name in ("one", "two"))
    recipe = Recipe.of(verified(model), ledger, begin_attempt(ledger.path))
    for path in (twin.path, tmp_path / "nowhere"):
        worker = ShardWorker(dataclasses.replace(recipe, store=str(path)))
        with pytest.raises(
            StoreError, match=r"does not see the store at .*: put it into a folder that all nodes share"
        ):
            worker.load()


def test_a_model_from_nowhere_is_refused_before_a_cluster_is_started(tmp_path: Path) -> None:
    made = tiny_model("llama")
    with pytest.raises(RunError, match=r"LlamaForCausalLM does not say where it was loaded from.*save_pretrained"):
        extract(made, DOCUMENTS, path=tmp_path / "store", engine="ray", **OPTIONS)
    assert not ray.is_initialized()
    assert not list((tmp_path / "store/attempts").iterdir())


def test_a_model_on_several_devices_is_refused(saved: Path, tmp_path: Path) -> None:
    spread = load_without_tokenizer(saved)
    ledger = store_in(tmp_path / "store", spread)
    spread.lm_head.to("meta")
    with pytest.raises(RunError, match=r"several devices \(cpu, meta\)"):
        Recipe.of(verified(spread), ledger, "0" * 16)


# --- Ray ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_all_that_it_started_and_it_is_resumed_without_ray(
    model: PreTrainedModel,
    digest: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "store"
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    capfd.readouterr()
    started: set[int] = set()

    def interrupt() -> None:
        started.update(eventually(lambda: writing(path), "a worker writes"))
        os.kill(os.getpid(), signal.SIGINT)

    with once_begun(path, interrupt), pytest.raises(KeyboardInterrupt):
        extract(model, DOCUMENTS, path=path, engine="ray", workers=1, **OPTIONS)
    assert not ray.is_initialized()
    eventually(lambda: not any(map(psutil.pid_exists, started)), "the worker is gone", 10)
    assert not [child for child in psutil.Process().children(recursive=True) if "raylet" in child.name()]
    assert "".join(capfd.readouterr()) == "", "Ray says nothing"
    assert 3 <= commits(path) < Ledger(path).num_shards
    assert extract(model, DOCUMENTS, path=path, **OPTIONS).digest == digest


def test_what_a_worker_finds_wrong_stops_the_run_as_the_error_that_it_is(
    connected: Any, saved: Path, tmp_path: Path
) -> None:
    broken = load_without_tokenizer(saved)
    with torch.no_grad():
        broken.get_input_embeddings().weight[98] = torch.nan
    broken.save_pretrained(tmp_path / "model")
    broken = load_without_tokenizer(tmp_path / "model")
    with pytest.raises(StoreError, match=r"^document \d+ has an activation that is not finite at z.1.2") as error:
        extract(broken, DOCUMENTS, path=tmp_path / "store", engine="ray", workers=1, **OPTIONS)
    assert type(error.value) is StoreError
    assert 0 < commits(tmp_path / "store") < Ledger(tmp_path / "store").num_shards


def test_ray_ends_what_one_process_began_though_a_worker_is_killed_and_a_node_is_lost(
    connected: Any, model: PreTrainedModel, digest: str, tmp_path: Path
) -> None:
    ledger = store_in(tmp_path / "store", model, done=8)
    before = {shard: ledger.commit(shard) for shard in ledger.committed()}
    nodes = {node.all_processes["raylet"][0].process.pid: node for node in connected.worker_nodes}
    left: list[int] = []

    def strike() -> None:
        victim = min(eventually(lambda: writing(ledger.path), "a worker writes"))
        home = psutil.Process(victim).ppid()
        os.kill(victim, signal.SIGKILL)
        other = next(node for pid, node in nodes.items() if pid != home)
        connected.remove_node(other, allow_graceful=False)
        left.append(ledger.num_shards - commits(ledger.path))

    with once_begun(ledger.path, strike):
        store = extract(model, DOCUMENTS, path=ledger.path, engine="ray", **OPTIONS)
    assert left[0] > 20, "there was much to do yet, for a worker that was started anew"
    assert ActivationStore(store.path, verify="full").digest == digest
    assert len(before) == 8
    assert {shard: ledger.commit(shard) for shard in before} == before, "what was there is not written again"
    assert not list((ledger.path / "attempts").iterdir())
    assert ray.is_initialized(), "the connection is the caller's"


# --- the pool, with workers that load nothing ---------------------------------------------------------------------


def run_pool(worker: type, shards: int, *, size: int = 1) -> list[int]:
    """Have a pool of such workers do shards; in which order they were done."""
    done: list[int] = []
    actor = ray.remote(worker).options(num_cpus=0, max_concurrency=2)
    engines_module._Pool(actor.remote, size).run(range(shards), lambda shard, _: done.append(shard))
    return done


@pytest.mark.parametrize(
    ("where", "raised"),
    [
        ("write", OSError(errno.ENOSPC, "No space left on device", "data")),
        ("write", StoreError("damaged")),
        ("load", ModelLoadError("no model")),
    ],
    ids=["OSError", "StoreError", "ModelLoadError"],
)
def test_errors_keep_their_class_and_what_they_say(connected: Any, raised: Exception, where: str) -> None:
    class Failing:
        def load(self) -> None:
            if where == "load":
                raise raised

        def write(self, shard: int) -> int:
            raise raised

    with pytest.raises(type(raised)) as error:
        run_pool(Failing, 3)
    assert type(error.value) is type(raised)
    assert str(error.value) == str(raised)
    assert getattr(error.value, "errno", None) == getattr(raised, "errno", None)


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_is_given_up_when_the_others_are_done(
    connected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying:
        def load(self) -> None:
            pass

        def write(self, shard: int) -> int:
            import os

            if shard == 2:
                os._exit(1)
            (tmp_path / str(shard)).touch()
            return 1

    monkeypatch.setattr(engines_module, "_DEATHS", 3)
    with pytest.raises(RunError, match="3 workers died while they had shard 2"):
        run_pool(Dying, 8, size=2)
    assert {path.name for path in tmp_path.iterdir()} == set("0134567")


def test_workers_that_die_while_they_load_end_the_run(connected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stillborn:
        def load(self) -> None:
            import os

            os._exit(1)

    monkeypatch.setattr(engines_module, "_DEATHS", 1)
    with pytest.raises(RunError, match="workers die again and again while they load the model"):
        run_pool(Stillborn, 1)


def test_waiting_for_workers_is_said_once(connected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def load(self) -> None:
            import time

            time.sleep(1)

        def write(self, shard: int) -> int:
            return 1

    monkeypatch.setattr(engines_module, "_PATIENCE", 0.2)
    with pytest.warns(InterpWarning, match=r"no worker is ready for 0.2 s") as said:
        assert sorted(run_pool(Slow, 3)) == [0, 1, 2]
    assert len(said) == 1


def test_commits_that_are_not_seen_here_are_an_error(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = store_in(tmp_path / "store", model, done=3)
    monkeypatch.setattr(engines_module, "_LAG", 0.0)
    engines_module._wait_until_seen(ledger, range(3))
    with pytest.raises(StoreError, match="committed 5 shards, but 2 of them are not seen"):
        engines_module._wait_until_seen(ledger, range(5))
