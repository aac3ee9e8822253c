"""The embedded teacher: 6 x 192, 3.3M parameters, trained from scratch on the same text as the student.

python -m experiments.pretrain --config pretrain_teacher
"""

from experiments.pretrain import PretrainConfig

config = PretrainConfig(name="pretrain_teacher", n_layer=6, n_embd=192, learning_rate=2e-3)
