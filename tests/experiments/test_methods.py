"""The method as a tagged union: each kind has its own settings, and each mistake one line."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import methods
from experiments.config.loading import help_lines
from experiments.config.methods import DBPMethod, StandardMethod, UpscaleDBPMethod, UpscaleMethod
from experiments.config.overrides import UsageError, apply_overrides
from experiments.config.schema import DataConfig, RunConfig, resolved
from experiments.data.jobs import Job
from experiments.data.jsonl import Pair
from rwkv7_jax.language_model import LanguageModel
from state_tuning import upscale
from state_tuning.core.train import TuneConfig
from state_tuning.dbp import literal as dbp_literal
from state_tuning.dbp import transform


def chosen(*words):
    return apply_overrides(RunConfig(), words).method


def test_a_kind_brings_its_settings_in_any_order():
    assert chosen("--method.size", "9", "--method.kind=upscale") == UpscaleMethod(size=9)
    assert chosen("--method.kind", "dbp", "method.rate=0.2") == DBPMethod(rate=0.2)
    both = chosen("method.kind=upscale_dbp", "--method.map", "recurrent", "--method.form=whitened")
    assert both == UpscaleDBPMethod(map="recurrent", form="whitened")
    assert resolved(RunConfig(method=both))["method"]["kind"] == "upscale_dbp"


def test_a_config_keeps_its_own_settings_if_the_kind_stays():
    config = RunConfig(method=UpscaleMethod(size=9))
    assert apply_overrides(config, ["--method.kind", "upscale"]).method.size == 9
    assert apply_overrides(config, ["--method.kind", "standard"]).method == StandardMethod()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--method.kind", "upscal"], "method.kind: 'upscal' is not one of standard, upscale, dbp, upscale_dbp"),
        (["--method.size=9"], "it goes with --method.kind upscale or --method.kind upscale_dbp"),
        (["--method.kind=dbp", "--method.ratee=1"], "unknown key 'method.ratee'; did you mean method.rate"),
        (["--method.kind=dbp", "--method.rate=3"], "method.rate: must lie between 0 and 1"),
        (["--method.kind=upscale", "--method.map=lateral"], "method.map: 'lateral' is not one of residual, recurrent"),
    ],
)
def test_mistakes_are_one_line(words, line):
    with pytest.raises(UsageError) as error:
        chosen(*words)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_help_shows_the_settings_of_every_kind():
    text = "\n".join(help_lines(RunConfig()))
    assert "with --method.kind upscale:" in text
    assert "--method.kappa" in text


def test_settings_are_those_of_state_tuning():
    mine = {field.name: field.default for field in dataclasses.fields(UpscaleMethod)}
    theirs = {field.name: field.default for field in dataclasses.fields(upscale.Upscale)}
    assert theirs == {name: value for name, value in mine.items() if name != "kind"}


def test_build_makes_what_the_step_takes(tiny: LanguageModel):
    job = Job("x", [Pair("a prompt ", "and its completion")] * 4, [])

    def calibration(tokens):
        return methods.calibration_batch(tiny.tokenizer, [job], DataConfig(), tokens)

    config = UpscaleDBPMethod(size=7)
    made = methods.build(config, tiny.model, tiny.params, TuneConfig(), calibration, 0)
    trainable = made.method.init()
    assert trainable.wkv.s_ext.shape == (2, 2, 4, 3)
    state = jax.eval_shape(made.optimizer.init, trainable)
    assert isinstance(state, transform.DecorrelatedState)
    assert made.correlate is not None
    c = jax.eval_shape(made.correlate, tiny.params, trainable, calibration(50))
    assert c.wkv.s_ext.shape == state.r.wkv.s_ext.shape == (2, 2, 3, 3)
    literal = methods.build(DBPMethod(form="literal"), tiny.model, tiny.params, TuneConfig(), calibration, 0)
    assert isinstance(literal.method.init(), dbp_literal.Rotated)
    assert methods.build(StandardMethod(), tiny.model, tiny.params, TuneConfig(), calibration, 0).correlate is None


def test_calibration_takes_part_of_every_job(tiny: LanguageModel):
    jobs = [Job(name, [Pair(name * 10, name * 9)] * 50, []) for name in "ab"]
    batch = methods.calibration_batch(tiny.tokenizer, jobs, DataConfig(), 100)
    first = np.asarray(batch["tokens"])[:, 0].tolist()
    assert first.count(ord("a")) == first.count(ord("b")) == 3
    with pytest.raises(UsageError, match="fitted to training text"):
        methods.calibration_batch(tiny.tokenizer, [], DataConfig(), 100)
