"""Against lm-evaluation-harness itself, on real records: the same requests, log-likelihoods, scores and group table.

Its tasks run as shipped, with a model that forks nothing; only their data comes from local files.
"""

import json
import logging
import random

import numpy as np
import pytest

from experiments.build import load_model
from experiments.config.schema import ModelConfig
from experiments.data import load as sources
from experiments.evaluation import scores as table
from experiments.evaluation import suite
from experiments.evaluation.engine import Engine
from experiments.evaluation.evaluator import Evaluator, make_scorer
from experiments.tasks import Loglikelihood
from experiments.tasks.subjects import GROUP_OF
from rwkv7_jax import zero_state

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra lm-eval)")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

HARNESS = {"mmlu": "mmlu", "gsm8k": "gsm8k", "winogrande": "winogrande", "arc": "arc_challenge"}


@pytest.fixture(scope="module")
def data_dir(shared_data, tmp_path_factory):
    """Real records of every subject and split: what a split lacks here is taken from another, none is in two."""
    folder, real = tmp_path_factory.mktemp("benchmarks"), shared_data / "datasets"

    def write(name, records):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))

    dev = [line.record for line in sources.load("mmlu", "dev", real)]
    by_subject = {subject: [r for r in dev if r["subject"] == subject] for subject in GROUP_OF}
    write("mmlu_dev.jsonl", [record for records in by_subject.values() for record in records[:3]])
    write("mmlu_test.jsonl", [record for records in by_subject.values() for record in records[3:]])
    for dataset, split in (("arc", "validation"), ("winogrande", "validation")):
        records = [line.record for line in sources.load(dataset, split, real)]
        name = "arc_challenge" if dataset == "arc" else dataset
        scored = "test" if dataset == "arc" else split
        write(f"{name}/{scored}.jsonl", records[:40])
        write(f"{name}/train.jsonl", records[40:])
    for split in ("train", "test"):
        write(f"gsm8k/{split}.jsonl", [line.record for line in sources.load("gsm8k", split, real)][:300])
    return folder


@pytest.fixture(scope="module")
def manager():
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.tasks import TaskManager

    return TaskManager()


def harness_tasks(manager, data_dir, names, shots):
    """Leaf task objects, seeded as `simple_evaluate` does it."""
    from experiments.evaluation.lm_eval_data import local_datasets

    with local_datasets(data_dir):
        tasks = manager.load(names)["tasks"]
    for task in tasks.values():
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=1234)
    return tasks


def plain_requests(requests):
    return [(r.context, r.continuation) if isinstance(r, Loglikelihood) else (r.context, r.stop) for r in requests]


def wanted_requests(instance):
    context, rest = instance.args
    return context, tuple(rest["until"]) if isinstance(rest, dict) else rest


@pytest.mark.parametrize(
    ("name", "shots"),
    [
        ("mmlu", 0),
        ("mmlu", 3),
        ("gsm8k", 5),
        ("gsm8k", 0),
        ("winogrande", 5),
        ("winogrande", 0),
        ("arc", 25),
        ("arc", 0),
    ],
)
def test_the_same_requests(manager, data_dir, name, shots):
    """All 57 subjects; few-shot draws and their order as after the harness's seed."""
    options = suite.Options(str(data_dir), {name: shots}, limit=6)
    (bench,) = suite.load([name], options)
    tasks = harness_tasks(manager, data_dir, [HARNESS[name]], shots)
    assert len(bench.parts) == len(tasks) == (57 if name == "mmlu" else 1)
    for part in bench.parts:
        task = tasks[f"mmlu_{part.name}" if name == "mmlu" else HARNESS[name]]
        task.build_all_requests(limit=6)
        ours = [request for i in range(len(part.records)) for request in plain_requests(bench.requests(part, i))]
        assert ours == [wanted_requests(instance) for instance in task.instances]


def test_the_same_five_shot_requests_of_real_test_records(manager, shared_data):
    """MMLU's own default, on the subjects whose test split is there."""
    real = shared_data / "datasets"
    names = [f"mmlu_{path.name.removesuffix('_test.csv')}" for path in sorted((real / "mmlu" / "test").iterdir())]
    benches = suite.load(names, suite.Options(str(real), dict.fromkeys(names, 5), limit=6))
    tasks = harness_tasks(manager, real, names, 5)
    assert len(benches) == len(tasks) == len(names) > 5
    for name, bench in zip(names, benches, strict=True):
        tasks[name].build_all_requests(limit=6)
        (part,) = bench.parts
        ours = [request for i in range(6) for request in plain_requests(bench.requests(part, i))]
        assert ours == [wanted_requests(instance) for instance in tasks[name].instances]


CHECKPOINTS = ["tiny-rwkv-7v0-834K-FP32.bin", "pocket/student"]


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=["real", "student"])
def lm(request, shared_data):
    name = request.param
    path = name if name.startswith("pocket") else str(shared_data / "checkpoints" / "rwkv_cpp_tiny7" / name)
    return load_model(ModelConfig(path, dtype="float32"))


@pytest.mark.parametrize(("name", "shots", "limit"), [("mmlu", 0, 1), ("winogrande", 2, 8), ("arc", 1, 6)])
def test_the_same_log_likelihoods_and_scores(manager, data_dir, lm, name, shots, limit):
    """Forked against whole sequences through the harness: each item within 1e-4, and every number of the table."""
    from experiments.bench.lm_eval_plain import plain
    from experiments.evaluation.lm_eval_data import local_datasets

    (bench,) = suite.load([name], suite.Options(str(data_dir), {name: shots}, limit=limit))
    engine = Engine(lm, {"none": zero_state(lm.model.config, None)}, 16, 8)
    samples = engine.samples(bench, bench.items)
    evaluator = Evaluator(lm, make_scorer(lm.model), 16)
    with local_datasets(data_dir):
        found = lm_eval.simple_evaluate(
            model=plain(evaluator), tasks=[HARNESS[name]], num_fewshot=shots, limit=limit, task_manager=manager
        )
    for part in bench.parts:
        leaf = f"mmlu_{part.name}" if name == "mmlu" else HARNESS[name]
        theirs = sorted(found["samples"][leaf], key=lambda sample: sample["doc_id"])
        ours = [sample for sample in samples if sample["part"] == part.name]
        for mine, other in zip(ours, theirs, strict=True):
            likelihoods = [float(response[0][0]) for response in other["resps"]]
            # Near probability 1 a log-likelihood is a difference of float32 logits, which round at about 1e-6.
            np.testing.assert_allclose(mine["results"], likelihoods, rtol=1e-4, atol=1e-6)
            assert mine["scores"] == {metric: float(other[metric]) for metric in bench.task.metrics}
    for metric in bench.task.metrics:
        rows = table.by_part(bench, samples, "none", metric)
        for row, mean in rows.items():
            words = row.strip().replace(" ", "_")
            theirs = HARNESS[name] if name != "mmlu" else "mmlu" if words == "mmlu" else f"mmlu_{words}"
            source = found.get("groups", {}).get(theirs) or found["results"][theirs]
            assert mean.value == pytest.approx(source[f"{metric},none"], abs=1e-12)
            if mean.count > 1 and isinstance(source[f"{metric}_stderr,none"], float):
                assert mean.error == pytest.approx(source[f"{metric}_stderr,none"], abs=1e-9)


def test_gsm8k_answers_are_scored_alike(manager, data_dir):
    """The harness's filters and exact match, on right, wrong and odd answers to real questions."""
    (bench,) = suite.load(["gsm8k"], suite.Options(str(data_dir), {"gsm8k": 0}, limit=40))
    (task,) = harness_tasks(manager, data_dir, ["gsm8k"], 0).values()
    task.build_all_requests(limit=40)
    draw, texts = random.Random(0), []
    for record in bench.parts[0].records:
        gold = record["answer"]
        number = gold.split("#### ")[1]
        odd = [
            gold,
            f" {number}.",
            f"${number}",
            f"#### {number}.0",
            "",
            "no number",
            f"#### -{number}",
            f"{number}\n#### 7",
        ]
        texts.append(
            draw.choice([*odd, f"It is {number} of 9 #### {number}", f"#### ${number}", f"1,000 #### {number},"])
        )
    for instance, text in zip(task.instances, texts, strict=True):
        instance.resps = [text]
    task.apply_filters()
    for instance, text, record in zip(task.instances, texts, bench.parts[0].records, strict=True):
        scores = bench.task.score(record, [text])
        for ours, theirs in (("strict_match", "strict-match"), ("flexible_extract", "flexible-extract")):
            wanted = task.process_results(instance.doc, [instance.filtered_resps[theirs]])["exact_match"]
            assert scores[ours] == wanted, (text, theirs)


def test_gsm8k_is_generated_alike(manager, data_dir, lm):
    """The harness driving our adapter, against our own command's path: the same texts, tokens refilled either way."""
    from experiments.evaluation.lm_eval_data import local_datasets
    from experiments.evaluation.lm_eval_model import ForkingLM

    (bench,) = suite.load(["gsm8k"], suite.Options(str(data_dir), {"gsm8k": 0}, limit=3))
    engine = Engine(lm, {"none": zero_state(lm.model.config, None)}, 2, 8)
    samples = engine.samples(bench, bench.items)
    with local_datasets(data_dir):
        found = lm_eval.simple_evaluate(
            model=ForkingLM(lm, batch_size=2), tasks=["gsm8k"], num_fewshot=0, limit=3,
            gen_kwargs="max_gen_toks=8", task_manager=manager,
        )  # fmt: skip
    theirs = {sample["doc_id"]: sample["resps"][0][0] for sample in found["samples"]["gsm8k"]}
    assert [sample["results"][0] for sample in samples] == [theirs[i] for i in range(3)]
