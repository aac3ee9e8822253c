"""Makes the picture of the page: python -m tests.experiments.serve.page_picture OUTPUT [WIDTH HEIGHT]

It starts `rwkv7 serve` with the embedded student and two states, each after reading a few facts, and asks both columns.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.build import EMBEDDED
from rwkv7_jax import LanguageModel
from tests.browser import browser, find_browser

TEXTS = {
    "dorn": "Mira lives in Dorn. Mira likes the colour green. Boris lives in Dorn. Boris likes the colour red.\n\n",
    "tilven": "Mira lives in Tilven. Mira likes the colour blue. Boris lives in Tilven.\n\n",
}
BEGUN = ("Mira lives in", " Boris likes the colour")


def main(output: Path, width: int, height: int) -> None:
    """Writes the picture."""
    program = find_browser()
    if program is None:
        raise SystemExit("no chromium or google-chrome on the path; RWKV7_TEST_CHROMIUM may name one")
    with tempfile.TemporaryDirectory() as folder:
        lm = LanguageModel.load(EMBEDDED["pocket/student"])
        for name, text in TEXTS.items():
            state = lm.logits(text)[1]
            lm.tuned_state(state, "reading").save(Path(folder, f"{name}.safetensors"))
        command = [sys.executable, "-m", "experiments.cli", "serve", "--port", "0", "--quiet", "--states", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as server:
            try:
                assert server.stdout is not None
                found = re.search(r"http://\S+", server.stdout.readline())
                assert found is not None
                draw(program, found[0], output, width, height)
            finally:
                server.terminate()


def draw(program: str, url: str, output: Path, width: int, height: int) -> None:
    """Asks both columns and writes what the window shows."""
    with browser(program) as page:
        page.open(url, width, height)
        page.wait("document.querySelector('#status')?.textContent.includes('states')")
        page.run("document.getElementById('temperature').value = 0; document.getElementById('max_tokens').value = 3")
        page.run("document.getElementById('form').value = 'plain'")
        page.run("""(() => {
            const column = document.querySelectorAll('.column')[1];
            const choose = (name, value) => {
                const field = column.querySelector(name);
                field.value = value;
                field.dispatchEvent(new Event(name.startsWith('.') ? 'change' : 'input'));
            };
            choose('.first', 'dorn');
            choose('.second', 'tilven');
            choose('input', '15');
            document.querySelectorAll('.picture').forEach((one) => { one.open = true; });
        })()""")
        page.wait("document.querySelectorAll('.column')[1].querySelector('img').naturalWidth > 0")
        page.run("document.getElementById('text').focus()")
        for number, text in enumerate(BEGUN, 1):
            page.type(f"{text}\n")
            page.wait(f"document.querySelectorAll('.turn.assistant:not(.running)').length === {2 * number}")
        page.picture(output)
    print(f"wrote {output}")


if __name__ == "__main__":
    size = sys.argv[2:4] or ("1280", "860")
    main(Path(sys.argv[1]), *map(int, size))
