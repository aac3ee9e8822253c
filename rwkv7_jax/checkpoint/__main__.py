"""`python -m rwkv7_jax.checkpoint`: names the commands that took over."""

import sys

COMMANDS = {"inspect": "rwkv7 inspect", "convert": "rwkv7 convert", "state": "rwkv7 state convert"}

if __name__ == "__main__":
    word = next(iter(sys.argv[1:]), "")
    wanted = COMMANDS.get(word, ", ".join(COMMANDS.values()))
    print(f"error: python -m rwkv7_jax.checkpoint{word and ' ' + word} is now: {wanted}", file=sys.stderr)
    sys.exit(2)
