"""Serve a model and a state, and call them with OpenAI's client: pip install "rwkv7-jax[serve]" openai."""

import pathlib
import subprocess
import sys
import tempfile

import openai

from experiments.build import checkpoint_path
from experiments.pocket import benchmarks
from rwkv7_jax import LanguageModel
from state_tuning import tune

folder = pathlib.Path(tempfile.mkdtemp())
lm = LanguageModel.load(checkpoint_path("pocket/student"))
train = [
    (f"User: {record['question']}\n\nAssistant:", " " + record["answer"].split("\n####")[0])
    for record in benchmarks.load("gsm8k", "train")
]
tune(lm, train, steps=100, learning_rate=3.0).state.save(folder / "sums.safetensors")

# Each state file in the folder is a model name. Port 0 is a free one; the server says which.
command = [sys.executable, "-m", "experiments.cli", "serve", "--states", str(folder), "--port", "0", "--slots", "2"]
question = [{"role": "user", "content": "Lena has 11 keys. Otto has 7 fewer than Lena. How many has Otto?"}]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    try:
        address = next(line.split(" at ")[1].split()[0] for line in server.stdout if " at http" in line)
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
            print("models:", *(model.id for model in client.models.list()))
            for name in ("student", "student:sums"):
                answer = client.chat.completions.create(model=name, messages=question, temperature=0, max_tokens=24)
                print(f"{name}: {answer.choices[0].message.content.strip()}")
    finally:
        server.terminate()
