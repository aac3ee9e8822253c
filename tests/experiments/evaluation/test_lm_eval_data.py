"""The harness's own tasks on a folder that has nothing but the split that they score."""

import json

import pytest

from experiments.config.overrides import UsageError
from experiments.evaluation import suite

RECORDS = {
    "winogrande": (
        "winogrande/validation.jsonl",
        "train",
        {"sentence": "The cup is on _ today.", "option1": "it", "option2": "top", "answer": "2"},
    ),
    "gsm8k": ("gsm8k/test.jsonl", "train", {"question": "1+1?", "answer": "2\\n#### 2"}),
    "arc_challenge": (
        "ARC-Challenge-Test.jsonl",
        "train",
        {"id": "x", "question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    ),
    "mmlu_anatomy": (
        "mmlu/test.jsonl",
        "dev",
        {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 1, "subject": "anatomy"},
    ),
}


@pytest.fixture(params=RECORDS)
def only(request, tmp_path):
    """(task of the harness, its name here, folder, split of the shots)."""
    file, split, record = RECORDS[request.param]
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({**record, "id": str(i)}) + "\n" for i in range(3)))
    return request.param, request.param.removesuffix("_challenge"), tmp_path, split


@pytest.fixture(scope="module")
def manager():
    pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra lm-eval)")
    from lm_eval.tasks import TaskManager

    return TaskManager()


@pytest.mark.filterwarnings("ignore")
def test_a_task_without_shots_needs_no_split_for_them(manager, only):
    from experiments.evaluation.lm_eval_data import local_datasets

    name, _, folder, split = only

    def requests(shots):
        with local_datasets(folder):
            (task,) = manager.load([name])["tasks"].values()
            task.set_config(key="num_fewshot", value=shots)
            task.set_fewshot_seed(seed=1234)
            task.build_all_requests()
        return task.instances

    assert requests(0)
    with pytest.raises(UsageError, match=rf"no {split} split.* under .*there is: (test|validation).*or use --shots 0"):
        requests(2)


def test_the_split_of_the_shots_is_told_from_the_one_that_is_scored(only):
    _, name, folder, split = only
    assert suite.load([name], suite.Options(str(folder), shots={name: 0}))[0].parts
    message = rf"no {split} split .*add its files; shots come from it, --shots {name}=0 needs none$"
    with pytest.raises(UsageError, match=message):
        suite.load([name], suite.Options(str(folder)))
    scored = {"winogrande": "test"}.get(name, "validation")
    with pytest.raises(UsageError, match=f"no {scored} split .*choose another split$"):
        suite.load([name], suite.Options(str(folder), shots={name: 0}, splits={name: scored}))
