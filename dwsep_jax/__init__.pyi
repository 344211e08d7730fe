"""What `import dwsep_jax` offers; read by type checkers and by `__init__.py`."""

from .evaluate import load_trained as load_trained
from .nn.accelerate import accelerate as accelerate
from .nn.accelerate import undo_accelerate as undo_accelerate
from .nn.compiler import check_compiler as check_compiler
from .nn.convert import separable_from_keras as separable_from_keras
from .nn.convert import separable_from_torch as separable_from_torch
from .nn.counting import count_macs as count_macs
from .nn.densenet import DenseNet as DenseNet
from .nn.densenet import create_model as create_model
from .nn.layers import BatchNorm as BatchNorm
from .nn.layers import BatchStatistics as BatchStatistics
from .nn.layers import DepthwiseConv as DepthwiseConv
from .nn.layers import Dropout as Dropout
from .nn.layers import Normalize as Normalize
from .nn.layers import PointwiseConv as PointwiseConv
from .nn.layers import SeparableConv as SeparableConv
from .nn.layers import StandardConv as StandardConv
from .nn.ops import depthwise_conv as depthwise_conv
from .nn.ops import pointwise_conv as pointwise_conv
from .report.write import write_report as write_report
from .train.step import TrainState as TrainState
from .train.step import create_train_state as create_train_state
from .train.step import eval_step as eval_step
from .train.step import make_run_keys as make_run_keys
from .train.step import train_many as train_many
from .train.step import train_step as train_step
