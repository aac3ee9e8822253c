"""What is said of a file of records."""

from collections.abc import Iterator

from experiments.data.info import MERGED_OF, Info, Seen
from experiments.reporting.findings import Finding

FEWEST = 3
"""Different records from which on some can be held out."""
SHOWN = 10
"""Kinds of broken records that are told one by one."""
RARE = 0.01
"""Part of the records up to which strange characters are a note."""


def describe(info: Info, tokenizer: str) -> list[str]:
    """Returns lines about what is there.

    Args:
      info: of the file.
      tokenizer: name of what counted the tokens.
    """
    kinds = ", ".join(f"{count:,} {name}" for name, count in info.forms.items())
    lines = [f"{info.file}: {info.records:,} records ({info.size / 1e6:.3g} MB)" + (f": {kinds}" if kinds else "")]
    if info.answers:
        conversations = sum(info.forms.values()) - info.forms.get("prompts with completions", 0)
        conversations -= info.forms.get("plain texts", 0)
        roles = ", ".join(f"{role} {count:,}" for role, count in info.roles.items())
        each = info.answers / conversations
        lines.append(
            f"turns: {info.answers:,} answers in {conversations:,} conversations, {each:.3g} each, at most "
            f"{info.most_answers:,}" + (f"; messages by role: {roles}" if roles else "")
        )
    if not info.tokens or not info.cut:
        return lines
    found, cut = info.tokens, info.cut
    lines.append(
        f"tokens ({tokenizer}): {found.total:,}, of which {found.learnt:,} are learnt; a record has {found.mean:.0f} "
        f"on average, half at most {found.median:,}, 95 % at most {found.most:,}, the longest {found.longest:,}"
    )
    part = f"{cut.records:,} records ({cut.records / info.records:.1%}) are cut and lose {cut.tokens:,} tokens"
    split = f"; {cut.split:,} are split without loss" if cut.split else ""
    lines.append(f"at data.max_length {cut.max_length}: {part}{split}")
    settings = " ".join(f"--{name} {value}" for name, value in info.suggested.items())
    return [*lines, f"suggested: {settings}"]


def findings(info: Info) -> list[Finding]:
    """Returns what is wrong with a file, and what is good to know of it."""
    return [Finding("data", text, fault) for part in (_refused(info), _doubtful(info)) for text, fault in part]


def _refused(info: Info) -> Iterator[tuple[str, bool]]:
    """What `rwkv7 tune` stops at."""
    for number, seen in enumerate(info.broken.values()):
        if number < SHOWN:
            yield f"{_first(seen)}{seen.first}", True
    if (more := len(info.broken) - SHOWN) > 0:
        yield f"{more} more kinds of broken records; repair these first", True
    different = info.records - info.repeated.count
    if different < FEWEST:
        yield (
            f"{info.file}: {different} different sound records, too few to hold some out; give more, or held-out "
            "ones by --data.validation FILE",
            True,
        )


def _doubtful(info: Info) -> Iterator[tuple[str, bool]]:
    """What is learnt otherwise than meant."""
    if blank := info.empty_answers.count:
        yield f"{blank:,} empty answers, the first at {info.empty_answers.first}; remove these turns or records", True
    if info.unlike.count:
        yield (
            f"{info.unlike.count:,} texts begin as a conversation and have no answer, so that all of it is learnt, the "
            f"first at {info.unlike.first}; end questions with an empty line and 'Assistant: ...'",
            True,
        )
    for kind, seen in info.strange.items():
        rare = seen.count < RARE * info.records
        yield f"{seen.count:,} records have {kind}, the first at {seen.first}; export them as UTF-8", not rare
    if info.repeated.count:
        count = f"{info.repeated.count:,} of {info.records:,} records are equal to earlier ones"
        yield f"{count} ({info.repeated.first}); remove them", 2 * info.repeated.count >= info.records
    if info.cut and info.cut.records and info.tokens:
        count = (
            f"{info.cut.records:,} of {info.records:,} records are longer than data.max_length {info.cut.max_length}"
        )
        keeps = f"--data.max_length {info.tokens.longest - 1} keeps all"
        yield f"{count} and are cut; {keeps}", 2 * info.cut.records >= info.records
    if info.merged.count:
        yield (
            f"in {info.merged.count:,} of the first {MERGED_OF:,} prompts the end and the beginning of the completion "
            f"would be one token, the first at {info.merged.first}; begin the completion with the space or line end "
            "that ends the prompt",
            False,
        )
    if info.unused:
        named = ", ".join(f"{key[:40]!r} ({count:,})" for key, count in list(info.unused.items())[:5])
        more = f" and {len(info.unused) - 5} more" if len(info.unused) > 5 else ""
        yield f"keys that are not used (records that have them): {named}{more}", False


def _first(seen: Seen) -> str:
    """How many there are, before the first of them."""
    return f"{seen.count:,} of this kind, the first: " if seen.count > 1 else ""
