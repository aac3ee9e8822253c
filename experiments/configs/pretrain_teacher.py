"""A teacher for the embedded student: 4 x 192, 2.3M parameters, trained from scratch on the same text as the student.

rwkv7 pretrain --config pretrain_teacher
"""

from experiments.config.schema import PretrainConfig

config = PretrainConfig(name="pretrain_teacher", n_layer=4, n_embd=192, muon_rate=0.015, learning_rate=2e-3, steps=2600)
