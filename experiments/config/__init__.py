"""The settings of every command: frozen dataclasses, and how arguments and files become them."""
