"""The embedded student: 4 x 128, 1.07M parameters, trained from scratch on the pocket world's text.

rwkv7 pretrain --config pretrain_student
"""

from experiments.config.schema import PretrainConfig

config = PretrainConfig(name="pretrain_student", n_layer=4, n_embd=128, steps=2800)
