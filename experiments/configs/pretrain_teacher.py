"""A teacher for the embedded student: 4 x 192, 2.3M parameters, trained from scratch on the same text as the student.

python -m experiments.pretrain --config pretrain_teacher
"""

from experiments.config import PretrainConfig

config = PretrainConfig(name="pretrain_teacher", n_layer=4, n_embd=192, learning_rate=2.5e-3)
