"""Generate text: `python -m experiments.commands.generate CHECKPOINT --prompt TEXT [--state STATEFILE]`."""

import argparse
import sys
from collections.abc import Generator, Sequence

from rwkv7_jax.terminal import exit_status


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m experiments.commands.generate",
        description="Continue a text with an RWKV-7 checkpoint, streaming to the terminal.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("checkpoint", help=".pth, .safetensors (or a folder of them), or rwkv.cpp .bin")
    p.add_argument("--prompt", default="", help='text to continue; "-" reads standard input; empty: a fresh text')
    p.add_argument("--state", help="state file to start from (default: the zero state)")
    p.add_argument("--state-layout", help="axis order of the state file, where it does not tell itself")
    p.add_argument("--tokenizer", default="auto", help='"auto", "world", "byte" or the path of a tokenizer.json')
    p.add_argument("--temperature", type=float, default=1.0, help="0 takes the most likely token always")
    p.add_argument("--top-p", type=float, default=0.85, help="keep the likeliest tokens up to this probability")
    p.add_argument("--top-k", type=int, default=0, help="keep this many of the likeliest tokens; 0: all")
    p.add_argument("--presence-penalty", type=float, default=0.0, help="against tokens that have occurred")
    p.add_argument("--frequency-penalty", type=float, default=0.0, help="against tokens, for each occurrence")
    p.add_argument("--penalty-decay", type=float, default=0.996, help="how occurrences fade, per token")
    p.add_argument("--seed", type=int, default=0, help="same seed, same text")
    p.add_argument("--max-new-tokens", type=int, default=200, help="stop after this many tokens")
    p.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop before this text; may be repeated")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute dtype")
    p.add_argument("--no-cache", action="store_true", help="do not keep compiled programs in the user's cache folder")
    p.add_argument("--quiet", action="store_true", help="no report about the checkpoint on standard error")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 after a one-line error; 130 after Ctrl-C."""
    args = parser().parse_args(argv)
    _tolerate_narrow_terminals()
    return exit_status(lambda: show(args))


def show(args: argparse.Namespace) -> int:
    """Print the text as it is generated; Ctrl-C ends its line."""
    try:
        for piece in pieces(args):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print()
        raise
    print()
    return 0


def pieces(args: argparse.Namespace) -> Generator[str, None, None]:
    """Text as it is generated.  Raises: ValueError, OSError for wrong files or settings."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from rwkv7_jax import checkpoint
    from rwkv7_jax.compile_cache import use_compilation_cache
    from rwkv7_jax.generation.generate import SamplingConfig, for_decoding, stream
    from rwkv7_jax.model import RWKV7
    from rwkv7_jax.tokenizer.tokenizers import load_tokenizer

    fields = {f.name for f in dataclasses.fields(SamplingConfig)}
    config = SamplingConfig(**{name: value for name, value in vars(args).items() if name in fields})
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"--seed must lie in 0..{2**32 - 1}, got {args.seed}")
    use_compilation_cache(not args.no_cache)
    prompt = _prompt(args.prompt)
    loaded = checkpoint.load(args.checkpoint)
    if not args.quiet:
        print(loaded.report, file=sys.stderr)
    tokenizer = load_tokenizer(args.tokenizer, loaded.config.vocab_size)
    state = None
    if args.state:
        base = loaded.report.weights_hash
        state = checkpoint.load_state(
            args.state, layout=args.state_layout, config=loaded.config, base_model_hash=base
        ).state
    model, params = for_decoding(RWKV7(dataclasses.replace(loaded.config, dtype=args.dtype)), loaded.params)
    del loaded
    end = yield from stream(model, params, tokenizer, prompt, state, jax.random.key(args.seed), config, stop=args.stop)
    if not jnp.isfinite(end.logits).any():
        raise ValueError(f"{args.checkpoint}: the model computes nothing but NaN: its weights are damaged")


def _prompt(text: str) -> str:
    """The text, that of standard input for "-". Raises: ValueError if it is no UTF-8."""
    if text == "-":
        if sys.stdin is None:
            raise ValueError("--prompt -: standard input is closed")
        text = sys.stdin.read()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("--prompt: the text is not valid UTF-8") from None
    return text


def _tolerate_narrow_terminals() -> None:
    """Show what the terminal's encoding lacks as a question mark instead of failing."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
