"""Looks at the machine, a checkpoint, a state and a file of records, and says what is wrong."""

import dataclasses
from pathlib import Path

from experiments.commands.work import data as data_work
from experiments.commands.work.state import load_state
from experiments.config.data_info import TokensConfig
from experiments.config.doctor import Doctor, PatientConfig
from experiments.data import info, info_report
from experiments.doctor import machine, states, weights
from experiments.reporting import findings
from experiments.reporting.findings import Finding
from experiments.reporting.json_text import json_text
from rwkv7_jax.checkpoint.files import write_text


def run(config: Doctor) -> int:
    """Prints what was found; returns 1 if there is a fault, else 0."""
    found, body = list[Finding](), dict[str, object]()
    facts = machine.gather()
    print("\n".join(machine.describe(facts)), flush=True)
    found += machine.judge(facts)
    body["machine"] = dataclasses.asdict(facts)
    model, own = None, None
    if config.model.checkpoint:
        looked = weights.look(config.model.checkpoint, config.model.tokenizer, facts.memory[0])
        model, own = looked.model, looked.own
        _tell(looked.lines, looked.findings, found)
        body["checkpoint"] = looked.numbers
    if name := config.state:
        seen = states.look(name, lambda: load_state(name, config.state_layout), model, own)
        _tell(seen.lines, seen.findings, found)
        body["state"] = seen.numbers
    if config.data:
        body["data"] = _data(config, found)
    print("\n".join([*findings.lines(found), findings.verdict(found)]))
    if config.json:
        body |= {"findings": findings.as_json(found), "result": findings.verdict(found)}
        write_text(Path(config.json).expanduser(), json_text(body, indent=1) + "\n")
    return int(any(one.fault for one in found))


def _tell(lines: list[str], new: list[Finding], found: list[Finding]) -> None:
    """Prints lines and keeps findings."""
    if lines:
        print("\n".join(lines), flush=True)
    found += new


def _data(config: Doctor, found: list[Finding]) -> dict[str, object]:
    """Looks at the file of records; its tokens are those of the checkpoint, if that can be read."""
    try:
        name, tokenizer = _tokenizer(config.model)
        looked = info.examine(str(config.data), config.examples, tokenizer, data_work.watched)
    except (ValueError, OSError) as error:
        found.append(Finding("data", str(error)))
        return {}
    _tell(info_report.describe(looked, name), info_report.findings(looked), found)
    return dataclasses.asdict(looked)


def _tokenizer(config: PatientConfig) -> tuple[str, data_work.Tokenizer]:
    """The checkpoint's tokenizer; that of the released models if it has none that can be read."""
    try:
        return data_work.find(TokensConfig(config.checkpoint, config.tokenizer))
    except (ValueError, OSError):
        return data_work.find(TokensConfig())
