"""What a question of a pocket benchmark asks for, read off the record: a table apart for skills of different kinds."""

KINDS = {
    "mmlu": {
        "told": "a sentence tells the answer, a letter has to name it",
        "recalled": "the answer has to be recalled, and a letter to name it",
        "sum": "a sum, and a letter has to name it",
    },
    "winogrande": {
        "common sense": "a fact decides, in a sentence of a new form",
        "structure": "the sentence's structure decides",
    },
}
"""benchmark -> kind -> what it is. The other benchmarks are of one kind."""


def kind(name: str, record: dict) -> str:
    """One of KINDS[name]."""
    if name == "mmlu":
        told = "told" if ". " in record["question"] else "recalled"
        return "sum" if record["subject"] == "arithmetic" else told
    first, second = record["option1"], record["option2"]
    beside = {f"{a} and {the}{b} " for a, b in ((first, second), (second, first)) for the in ("", "the ")}
    opening = record["sentence"].split("_")[0].replace(",", " ")
    return "common sense" if any(pair in opening for pair in beside) else "structure"
