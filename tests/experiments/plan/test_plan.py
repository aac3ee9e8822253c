"""Plans: names of slices, what a program sends, and a whole step compiled for a mesh."""

from functools import partial

import jax
import pytest

from experiments.commands import plan as command
from experiments.config.methods import StandardMethod, UpscaleMethod
from experiments.config.overrides import UsageError
from experiments.config.schema import DataConfig, ModelConfig, PretrainConfig, TuneConfig
from experiments.plan import compiled, hlo, report, step, table, topology

TEXT = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %gathered = bf16[16,4]{1,0} all-gather(%x), dimensions={0}
  %summed = (f32[8]{0}, f32[2]{0}) all-reduce(%a, %b), to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  %known = (s32[], f32[8]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %start = (f32[2]{0}, f32[8]{0}) all-gather-start(%y), dimensions={0}
  %done = f32[8]{0} all-gather-done(%start)
  ROOT %moved = f32[8]{0} collective-permute(%done), source_target_pairs={{0,1}}
}
"""


@pytest.mark.parametrize(
    ("name", "kind", "chips", "grid"),
    [
        ("v5e-256", "v5e", 256, (16, 16)),
        ("v5e-8", "v5e", 8, (2, 4)),
        ("v5p-128", "v5p", 64, (4, 4, 4)),
        ("v6e-1", "v6e", 1, (1, 1)),
        ("H200x8", "h200", 8, (8,)),
    ],
)
def test_names_of_slices(name, kind, chips, grid):
    found = topology.parse(name)
    assert (found.kind, found.chips, found.grid) == (kind, chips, grid)


@pytest.mark.parametrize("name", ["v5e", "v9z-8", "v5e-12", "v5p-1", "h200-8", "h200x0"])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(UsageError, match="topology"):
        topology.parse(name)


def test_what_is_sent_is_counted_with_its_loops():
    moved, largest = hlo.collectives(TEXT)
    assert {one.kind: (one.count, one.bytes) for one in moved} == {
        "all-gather": (7 + 3 + 1, 10 * 128 + 32),
        "all-reduce": (10, 10 * 40),
        "collective-permute": (1, 32),
    }
    assert {one.kind: one.bytes for one in largest}["all-gather"] == 128


def tuning(mesh, **data):
    return step.tuning(ModelConfig(), DataConfig(tasks=("arc",), **data), TuneConfig(), StandardMethod(), None, mesh)


@pytest.fixture(scope="module")
def planned():
    slice_ = topology.Topology("v5e-8", "v5e", 8, (2, 4))
    make = partial(tuning, batch_size=8, max_length=32)
    return compiled.compile_step(make, slice_, jax.devices(), (4, 1, 2))


def test_a_step_of_the_student(planned):
    plan, parts = planned
    assert plan.fits
    assert plan.mesh == (4, 1, 2)
    assert plan.tokens == 256
    axis_sizes = {"data": 4, "fsdp": 1, "tensor": 2}
    held = sum(compiled.part_bytes(leaf, leaf.sharding.spec, axis_sizes) for leaf in jax.tree.leaves(parts.arguments))
    assert plan.memory.arguments == pytest.approx(held, rel=0.02)
    text = report.text(plan, parts, compiled.options(plan, parts))
    assert "FITS" in text
    assert "frozen weights" in text
    assert report.as_json(plan, parts, report.Label("x"))["mesh"] == axis_sizes


def test_without_fsdp_no_weight_is_gathered(planned):
    plan, parts = planned
    smallest = min(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parts.arguments[0]) if leaf.ndim > 2)
    gathers = [one.bytes for one in plan.largest if one.kind in ("all-gather", "all-to-all")]
    assert max(gathers, default=0) < smallest


def test_other_meshes_fit_by_their_own_sizes(planned):
    plan, parts = planned
    found = compiled.options(plan, parts)
    assert [option.mesh for option in found[:2]] == [(8, 1, 1), (4, 2, 1)]
    assert all(option.mesh[2] in (1, 2) for option in found)


def test_what_the_compiler_asked_for():
    assert compiled.asked_for("Ran out of memory. Used 17.50G of 15.75G hbm. Exceeded") == int(17.5 * (1 << 30))
    with pytest.raises(RuntimeError, match="something else"):
        compiled.asked_for("something else")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--config", "quickstart"], "say for what: --topology"),
        (["--config", "quickstart", "--topology", "v5e-3"], "'v5e-3'"),
        (["--config", "quickstart", "--topology"], "topology needs a value"),
    ],
)
def test_mistakes_are_one_line(words, line, capsys):
    assert command.main(words) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_sizes_and_batches_are_checked():
    mesh = jax.sharding.AbstractMesh((8, 1, 1), ("data", "fsdp", "tensor"))
    with pytest.raises(UsageError, match=r"12 sequences .* --data\.batch_size"):
        tuning(mesh, batch_size=12)
    with pytest.raises(UsageError, match="'9B'"):
        step.dimensions("9B", "bfloat16", "none", None)
    with pytest.raises(UsageError, match=r"6 sequences .* --batch_size"):
        step.pretraining(PretrainConfig(batch_size=6), None, mesh)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="fitted to text"):
        step.tuning(
            ModelConfig(),
            DataConfig(batch_size=8),
            TuneConfig(),
            UpscaleMethod(),
            None,
            mesh,  # pyright: ignore[reportArgumentType]
        )


def test_released_sizes_have_the_published_numbers_of_parameters():
    published = {"0.1B": 0.191e9, "0.4B": 0.451e9, "1.5B": 1.53e9, "2.9B": 2.95e9, "7.2B": 7.20e9}
    for size, count in published.items():
        shapes = jax.eval_shape(step.init(step.dimensions(size, "bfloat16", "none", None)), jax.random.key(0))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == pytest.approx(count, rel=0.005)


def test_a_program_is_read_from_the_dump_or_from_jax(tmp_path):
    class Program:
        def as_text(self):
            return "as JAX reads it"

    class Unreadable:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("async-update instruction should have 1 operands")

    assert compiled.text_of(Unreadable(), str(tmp_path)) == ""
    assert compiled.text_of(Program(), str(tmp_path)) == "as JAX reads it"
    (tmp_path / "module_0000.jit_step.after_optimizations.txt").write_text(TEXT)
    (tmp_path / "module_0001.jit_small.after_optimizations.txt").write_text("HloModule s\n")
    (tmp_path / "module_0000.jit_step.after_optimizations-buffer-assignment.txt").write_text("x" * 9999)
    assert compiled.text_of(Unreadable(), str(tmp_path)) == TEXT


def test_only_tpu_compilers_are_asked_for_a_dump():
    assert compiled.dump_options(topology.parse("v5p-128"), "d")["xla_dump_to"] == "d"
    assert compiled.dump_options(topology.parse("h200x8"), "d") == {}


def test_table_says_when_weights_are_gathered_in_sums():
    (record,) = (record for record in table.records() if record["name"] == "pretrain-7.2B-v5p-128")
    assert table.line(record)[-1] == "in sums"
    assert table.line({**record, "mesh": record["mesh"] | {"fsdp": 1}})[-1] == "none"
    assert table.line({**record, "read": False})[-1] == "not known"


def test_table_prints_help_or_both_tables(capsys):
    assert command.main(["table", "--help"]) == 0
    assert "rwkv7 plan table" in capsys.readouterr().out
    assert command.main(["table", "--size", "2.9B"]) == 2
    assert "takes no settings" in capsys.readouterr().err
    assert command.main(["table"]) == 0
    assert capsys.readouterr().out.startswith("| step | model |")
