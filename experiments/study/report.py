"""The table as Markdown and JSON, and its copy in the documentation."""

from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.config.study import LARGER
from experiments.pocket.question_kinds import KINDS
from experiments.reporting.accuracy_curve import table as scaling_table
from experiments.reporting.json_text import json_text
from experiments.reporting.statistics import Interval
from experiments.reporting.tables import markdown_table, text_table
from experiments.study.labels import LABELS
from experiments.study.records import ByMethod, Measure, Summary, TableResults, differences
from rwkv7_jax.checkpoint.files import write_text

BEGIN, END = "<!-- paper_table -->", "<!-- /paper_table -->"


def percent(x: Interval, signed: bool = False) -> str:
    """Returns mean and interval in percent, or in signed percentage points, bold where the interval is clear of 0."""
    sign = "+" if signed else ""
    text = f"{100 * x.mean:{sign}.1f} [{100 * x.low:{sign}.1f}, {100 * x.high:{sign}.1f}]"
    return f"**{text}**" if signed and (x.low > 0 or x.high < 0) else text


def nats(x: Interval, signed: bool = False) -> str:
    """Returns mean and interval of a loss or of a difference, bold where the interval is clear of 0."""
    sign = "+" if signed else ""
    text = f"{x.mean:{sign}.3f} [{x.low:{sign}.3f}, {x.high:{sign}.3f}]"
    return f"**{text}**" if signed and (x.low > 0 or x.high < 0) else text


Format = Callable[[Interval, bool], str]
"""(interval, signed) -> text."""
FORMATS: tuple[tuple[Measure, Format, str], ...] = (("accuracy", percent, "points"), ("loss", nats, "nats per token"))


def grid(by_method: ByMethod, tasks: Sequence[str], show: Format, signed: bool = False) -> str:
    """Returns methods by benchmarks, and the mean over benchmarks, as Markdown."""
    columns = [*tasks, "mean"] if len(tasks) > 1 else tasks
    lines = [["method", *columns]]
    for name, found in by_method.items():
        if found:
            lines.append([LABELS.get(name, name), *(show(found[c], signed) if c in found else "" for c in columns)])
    return markdown_table(lines)


def _of_student(by_method: ByMethod) -> ByMethod:
    return {name: x for name, x in by_method.items() if not name.startswith(LARGER)}


def results_section(body: Summary) -> list[str]:
    """Returns accuracy and loss, and the paired differences."""
    tasks = body["tasks"]
    differ = "Bold: the interval leaves out 0."
    text = ["## Accuracy, %", "", grid(_of_student(body["accuracy"]), tasks, percent), ""]
    if "test_time" in body["items"]:
        counts = {shape[1] for shape in body["items"]["test_time"].values()}
        text += [f"{LABELS['test_time']}: of the first {max(counts)} records.", ""]
    text += ["## Held-out loss, nats per completion token", "", grid(_of_student(body["loss"]), tasks, nats), ""]
    for other in ("vanilla", "standard"):
        for measure, show, unit in FORMATS:
            found = differences(body, measure)[other]
            name = LABELS.get(other, other)
            text += [f"## {measure.capitalize()} minus that of {name}, {unit}", ""]
            text += [f"Paired over items and seeds. {differ}", "", grid(found, tasks, show, True), ""]
    return text


def kinds_section(body: TableResults) -> list[str]:
    """Returns accuracy by kind of question."""
    text = ["## Accuracy by kind of question, %", ""] if body["kinds"] else []
    for task, by_method in body["kinds"].items():
        described = {one: KINDS[task][one] for found in by_method.values() for one in found}
        lines = [["method", *described]]
        for name, found in by_method.items():
            lines.append([LABELS.get(name, name), *(percent(found[one]) for one in described)])
        text += [
            f"{task}: {'; '.join(f'{one}: {what}' for one, what in described.items())}.",
            "",
            markdown_table(lines),
            "",
        ]
    return text


def cost_section(body: Summary) -> list[str]:
    """Returns seconds per step, number of steps, learning rates."""
    tasks, seconds = body["tasks"], body["seconds"]
    lines = [["method", "steps", *(f"rate, {task}" for task in tasks), *(f"ms a step, {t}" for t in tasks), "cost"]]
    base = sum(seconds["standard"].values()) if "standard" in seconds else 0.0
    for name, rates in body["rates"].items():
        found = seconds.get(name, {})
        times = [f"{1000 * found[task]:.0f}" if task in found else "" for task in tasks]
        ratio = f"{sum(found.values()) / base:.2f}" if found and base else ""
        cells = [LABELS.get(name, name), str(body["steps"].get(name, "")), *(f"{rates[t]:g}" for t in tasks)]
        lines.append([*cells, *times, ratio])
    return [
        "## Steps, learning rates, cost",
        "",
        "Rates: the best of those tried on the validation split by `rwkv7 study rates` (every "
        "try is in rates.jsonl). Cost: a step against one of standard tuning, taken in turn on the same batches.",
        "",
        markdown_table(lines),
        "",
    ]


def scaling_section(body: Summary) -> list[str]:
    """Returns test-time scaling by benchmark."""
    if not body["scaling"]:
        return []
    text = ["## Test-time scaling", "", "Intervals over problems and seeds. N counts chains, the answer included.", ""]
    for task, found in body["scaling"].items():
        problems = body["items"].get("test_time", {}).get(task, [1, 0])
        title = f"### {task}: {problems[1]} problems, {problems[0]} seeds"
        text += [title, "", scaling_table(found["points"], found["differences"], problems[1]), ""]
    return text


def reach_section(body: Summary) -> list[str]:
    """Returns how long S_0 is read."""
    if not body["half_lives"]:
        return []
    lines = [["benchmark", "state", "tokens by layer"]]
    for task, states in body["half_lives"].items():
        lines += [[task, LABELS.get(name, name), ", ".join(map(str, x))] for name, x in states.items()]
    text = (
        "Tokens after which |q_t| stays below half of |q_1|: from there on S_0 is read at less than half its strength."
    )
    return ["## How long an initial state is read", "", text, "", markdown_table(lines), "", *spectra_part(body)]


def spectra_part(body: Summary) -> list[str]:
    """Returns how many directions the inputs of the trained matrices have."""
    if not body["spectra"]:
        return []
    lines = [["input", "largest eigenvalue's share", "participation ratio"]]
    for name, x in body["spectra"].items():
        label = "q_t, read by S_0" if name == "q" else f"psi(r_t), {LABELS.get(name, name)}"
        lines.append([label, f"{x['largest']:.3f}", f"{x['participation']:.1f}"])
    text = "E[x x^T] of what the trained matrices read; a ratio of 1 means that it is one and the same direction."
    return ["### How many directions", "", text, "", markdown_table(lines), ""]


def observer_section(body: Summary) -> list[str]:
    """Returns how well the larger model is observed, and what carried states are worth there."""
    if not body["observer"]:
        return []
    tasks = body["tasks"]
    lines = [["observer", "R² by layer", "KL(larger given student), nats", "KL from the mapped state, nats"]]
    for name, x in body["observer"].items():
        layers = ", ".join(f"{value:.3f}" for value in x["r2"])
        lines.append([name, layers, f"{x['kl_logits']:.3f}", f"{x['kl_state']:.3f}"])
    text = [
        "## Observer",
        "",
        markdown_table(lines),
        "",
        "States carried to the larger model, its own beside them:",
        "",
    ]
    for measure, show, _ in FORMATS:
        own = {name: x for name, x in body[measure].items() if name.startswith(LARGER)}
        text += [f"{measure}:", "", grid(own, tasks, show), ""]
    difference = body["accuracy_against"]["larger_vanilla"]
    text += ["Accuracy minus that of the larger model, vanilla:", "", grid(difference, tasks, percent, True), ""]
    return text


def markdown(body: TableResults, pictures: Sequence[str], prefix: str = "") -> str:
    """Returns all sections. prefix: before the pictures' names."""
    text = [body["protocol"], "", "What the intervals say:", "", *(f"- {line}" for line in body["claims"]), ""]
    text += (
        results_section(body)
        + kinds_section(body)
        + cost_section(body)
        + scaling_section(body)
        + observer_section(body)
        + reach_section(body)
    )
    text += ["## Pictures", ""]
    text += [f"![{name}]({prefix}{name})" for name in pictures]
    return "\n".join([*text, ""])


def write(folder: Path, body: TableResults, pictures: Sequence[str]) -> None:
    """Writes report.md and results.json."""
    write_text(folder / "report.md", f"# {body['config']['name']}\n\n{markdown(body, pictures)}")
    write_text(folder / "results.json", json_text(body, indent=1) + "\n")


def fill(page: Path, text: str, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Puts `text` between the page's markers.

    Raises:
      ValueError: the page has no markers.
    """
    opening, closing = markers
    before, begin, rest = page.read_text(encoding="utf-8").partition(opening)
    _, end, after = rest.partition(closing)
    if not begin or not end:
        raise ValueError(f"{page}: no {opening} ... {closing} to fill")
    write_text(page, f"{before}{opening}\n{text}\n{closing}{after}")


def text_of(body: Summary) -> str:
    """Returns the accuracies and claims for a terminal."""
    columns = [*body["tasks"], "mean"] if len(body["tasks"]) > 1 else body["tasks"]
    lines = [["accuracy, %", *columns]]
    for name, found in body["accuracy"].items():
        lines.append([LABELS.get(name, name), *(percent(found[c]) if c in found else "" for c in columns)])
    return "\n".join([text_table(lines), "", *(f"- {line}" for line in body["claims"])])
