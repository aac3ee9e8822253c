"""Plans: names of slices, what a program sends, and a whole step compiled for a mesh."""

import json
from functools import partial

import jax
import pytest

from experiments.commands import plan as command
from experiments.config.methods import StandardMethod, UpscaleMethod
from experiments.config.overrides import UsageError
from experiments.config.schema import DataConfig, ModelConfig, PretrainConfig, TuneConfig
from experiments.plan import advice, compiled, hlo, report, step, table, topology

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


CHAIN = """HloModule c

ENTRY %main (x: f32[8]) -> f32[8] {
  %one = f32[8]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1}}
  %two = f32[8]{0} collective-permute(%one), channel_id=2, source_target_pairs={{1,2}}
  %all = f32[4]{0} collective-permute(%y), channel_id=3, source_target_pairs={{0,1},{1,2},{2,3}}
  %none = f32[8]{0} collective-permute(%two), channel_id=4, source_target_pairs={}
  ROOT %loop = (s32[], f32[8]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %again = f32[8]{0} collective-permute(%z), channel_id=2, source_target_pairs={{1,2}}
}
"""


def test_a_permutation_counts_for_the_chips_that_it_sends_to():
    ((kind, count, size),), _ = hlo.collectives(CHAIN)
    assert (kind, count, size) == ("collective-permute", 2 + 5, 6 * 32 + 16)


ASYNCHRONOUS = """HloModule a

%first (x: bf16[8]) -> bf16[16] {
  ROOT %start = bf16[16]{0} all-gather(%x), channel_id=5, dimensions={0}
}

%second (x: bf16[8]) -> bf16[16] {
  ROOT %rest = bf16[16]{0} all-gather(%x), channel_id=5, dimensions={0}
}

%third (x: bf16[8]) -> bf16[16] {
  ROOT %done = bf16[16]{0} all-gather(%x), channel_id=5, dimensions={0}
}

%steps (p: (s32[], bf16[16])) -> (s32[], bf16[16]) {
  %other = bf16[16]{0} all-gather(%y), channel_id=6, dimensions={0}
  %two = bf16[16]{0} fusion(%x), kind=kOutput, calls=%second
}

%body (p: (s32[], bf16[16])) -> (s32[], bf16[16]) {
  %one = bf16[16]{0} fusion(%x), kind=kCustom, calls=%first
  %inner = (s32[], bf16[16]) while(%t), condition=%c, body=%steps, backend_config={"known_trip_count":{"n":"3"}}
  %end = bf16[16]{0} fusion(%x), kind=kCustom, calls=%third
}

ENTRY %main (x: bf16[8]) -> bf16[16] {
  %loop = (s32[], bf16[16]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"4"}}
  %again = (s32[], bf16[16]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"2"}}
}
"""


def test_an_asynchronous_operation_counts_where_it_starts():
    (moved,), (largest,) = hlo.collectives(ASYNCHRONOUS)
    started, within = 4 + 2, 3 * (4 + 2)
    assert moved == ("all-gather", started + within, (started + within) * 32)
    assert largest.bytes == 32


def tuning(mesh, **data):
    return step.tuning(ModelConfig(), DataConfig(tasks=("arc",), **data), TuneConfig(), StandardMethod(), None, mesh)


@pytest.fixture(scope="module")
def planned():
    slice_ = topology.Topology("v5e-8", "v5e", 8, (2, 4))
    make = partial(tuning, batch_size=8, max_length=32)
    return compiled.compile_step(make, slice_, jax.devices(), (4, 1, 2, 1))


def test_a_step_of_the_student(planned):
    plan, parts = planned
    assert plan.fits
    assert plan.mesh == (4, 1, 2, 1)
    assert plan.tokens == 256
    axis_sizes = {"data": 4, "fsdp": 1, "tensor": 2}
    held = sum(compiled.part_bytes(leaf, leaf.sharding.spec, axis_sizes) for leaf in jax.tree.leaves(parts.arguments))
    assert plan.memory.arguments == pytest.approx(held, rel=0.02)
    text = report.text(plan, parts, compiled.options(plan, parts), [])
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
    assert [option.mesh for option in found[:2]] == [(8, 1, 1, 1), (4, 2, 1, 1)]
    assert all(option.mesh[2] in (1, 2) for option in found)


@pytest.fixture(scope="module")
def long_row():
    slice_ = topology.Topology("v5e-8", "v5e", 8, (2, 4))
    return compiled.compile_step(partial(tuning, batch_size=1, max_length=64), slice_, jax.devices(), (1, 1, 1, 8))


def test_a_row_cut_along_its_tokens(long_row):
    """Each chip gets one state a layer forward and one backward, and the last tokens of others."""
    plan, parts = long_row
    assert plan.mesh == (1, 1, 1, 8)
    assert report.mesh(plan.mesh) == "data 1 x fsdp 1 x tensor 1 x sequence 8"
    assert report.as_json(plan, parts, report.Label("x"))["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 8}
    model = parts.model
    state = model.n_head * model.head_size**2 * 4
    moved = {one.kind: one for one in plan.collectives}["collective-permute"]
    assert moved.bytes == 2 * model.n_layer * state
    assert {option.mesh[3] for option in compiled.options(plan, parts)} == {8}


def test_a_longer_row_is_cut_over_more_chips(long_row):
    plan, parts = long_row
    large = plan._replace(
        memory=compiled.asked_for(NEW, compiled.held(parts.groups, {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 8})),
        refused=True,
    )
    longer = parts._replace(length=1 << 14)
    found = [change.settings for change in advice.advice(large, longer)]
    assert "--topology v5e-16 --mesh.sequence 16" in found


OLD = "Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded hbm capacity by 1.75G."
NEW = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (18.65G) exceeds available HBM (15.75G). HLO module: jit_step."
)
G = 1 << 30


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (OLD, compiled.Memory(int(17.5 * G), G, int(17.5 * G) - G, 0, int(15.75 * G))),
        (NEW, compiled.Memory(G + int(18.65 * G), G, int(18.65 * G), 0, int(15.75 * G))),
        (
            "RESOURCE_EXHAUSTED: the memory required for program arguments (33.50GiB) exceeds available HBM (15.75GiB)",
            compiled.Memory(int(33.5 * G), G, int(33.5 * G) - G, 0, int(15.75 * G)),
        ),
        ("RESOURCE_EXHAUSTED: in words that no release has used yet", compiled.Memory(G, G)),
    ],
)
def test_what_the_compiler_asked_for(message, wanted):
    assert compiled.asked_for(message, G) == wanted


@pytest.mark.parametrize(
    "message",
    ["INTERNAL: something else", "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 33M of 16M"],
)
def test_another_refusal_is_one_line(message):
    with pytest.raises(UsageError, match="the compiler refused the step: "):
        compiled.asked_for(message + "\nmore", G)


def refused(plan, parts, message=NEW):
    held = compiled.held(parts.groups, {"data": 4, "fsdp": 1, "tensor": 2, "sequence": 1})
    memory = compiled.asked_for(message, held)
    return plan._replace(memory=memory, refused=True, read=False, collectives=[], largest=[])


def test_what_does_not_fit_says_by_how_much_and_what_would(planned):
    plan, parts = planned
    large = refused(plan, parts)
    assert not large.fits
    changes = advice.advice(large, parts)
    assert [change.settings for change in changes] == [
        "--model.remat block",
        "--tune.accumulate 2",
        "--data.batch_size 4",
        "--topology v5e-16 --mesh.tensor 2",
        "--topology v4-16",
    ]
    rest = [change.needed for change in changes[1:4]]
    assert rest == pytest.approx([9.33 * G] * 3, rel=0.01)
    text = report.text(large, parts, [], changes)
    assert "of 15.75 GiB that a program may take: DOES NOT FIT, 2.90 GiB too much" in text
    assert "  --tune.accumulate 2: about 9.33 GiB a chip" in text
    unsaid = refused(plan, parts, "RESOURCE_EXHAUSTED: unsaid")
    assert [change.needed for change in advice.advice(unsaid, parts)] == [None, None]
    assert "DOES NOT FIT; the arguments alone are" in report.text(unsaid, parts, [], [])


def test_weights_larger_than_a_chip_are_cut_over_more(planned):
    plan, parts = planned
    tight = refused(plan, parts)
    tight = tight._replace(memory=tight.memory._replace(available=tight.memory.arguments * 3 // 4))
    assert [change.settings for change in advice.advice(tight, parts)][:1] == ["--topology v4-16"]


def test_a_plan_that_the_compiler_refuses_is_a_result(capsys, monkeypatch, tmp_path):
    def out_of_memory(self, *args, **kwargs):
        raise jax.errors.JaxRuntimeError(NEW)

    monkeypatch.setattr(jax.stages.Lowered, "compile", out_of_memory)
    monkeypatch.setattr(compiled, "devices", lambda target: jax.devices()[:1])
    for name in ("JAX_PLATFORMS", "JAX_ENABLE_COMPILATION_CACHE", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "cpu" if name == "JAX_PLATFORMS" else "")
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.setenv(name, "")
    written = tmp_path / "plan.json"
    words = ["--config", "quickstart", "--topology", "v5e-1", "--data.batch_size", "8", "--json", str(written)]
    assert command.main(words) == 1
    out, error = capsys.readouterr()
    assert "DOES NOT FIT, 2.9" in out
    assert "--tune.accumulate 2" in out
    assert "Traceback" not in error
    assert json.loads(written.read_text())["fits"] is False


def test_two_plans_may_run_at_once(monkeypatch):
    monkeypatch.setattr(topology.os, "environ", {})
    topology.prepare(topology.parse("v5e-1"))
    assert topology.os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"


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
    along = jax.sharding.AbstractMesh((1, 1, 1, 8), ("data", "fsdp", "tensor", "sequence"))
    with pytest.raises(UsageError, match=r"4 tokens .* --data\.max_length or --mesh\.sequence"):
        tuning(along, batch_size=1, max_length=4)
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
