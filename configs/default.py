"""Every field of a run, with its default. The other files change a few of these."""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """Return the default configuration: the separable network on CIFAR-10."""
    c = ml_collections.ConfigDict()

    # Data. A TFDS name: cifar10, digits, cifar100, svhn_cropped, ...
    c.dataset = "cifar10"
    # TFDS directory; unset: $TFDS_DATA_DIR, else TFDS's own default.
    c.data_dir = config_dict.placeholder(str)
    # Images held out of `train`, stratified by class.
    c.validation_size = 5000
    # Draws the validation images, so that all seeds and variants share them.
    c.split_seed = 0
    # Mirror left to right with probability 1/2.
    c.flip = True
    # Shift by up to this many pixels each way, zero-padded.
    c.shift = 4
    # Side of the square that is blanked out, in pixels; 0: off.
    c.cutout = 0
    # Beta(a, a) parameter of mixup; 0: off.
    c.mixup = 0.0
    # Share of each label that is spread over all classes; 0: off.
    c.label_smoothing = 0.0

    # Network: `separable` or `standard`, the convolution in the dense blocks.
    c.conv = "separable"
    # Channels that each dense layer adds.
    c.growth_rate = 24
    # Dense layers in each block.
    c.block_sizes = (6, 6, 6, 6)
    # Width of a 1x1 convolution before each layer's own, in growth rates; 0: none.
    c.bottleneck = 0
    # Share of the channels that a transition keeps.
    c.reduction = 0.5
    # Channels of the stem, in growth rates.
    c.stem_width = 2.0
    # Stride of the stem: 1, or 2 to work at half the resolution.
    c.stem_stride = 1
    # Side of the convolution kernels in the stem and the dense blocks.
    c.kernel_size = 3
    # relu, leaky_relu, swish or gelu.
    c.activation = "relu"
    # Batch norm between depthwise and pointwise.
    c.inner_norm = False
    # Activation between depthwise and pointwise.
    c.inner_activation = False
    # Share of each dense layer's outputs that is dropped, rounded to 1/256.
    c.dropout_rate = 0.1
    # Share of the old value that running batch statistics keep at each step.
    c.norm_momentum = 0.9
    # Dtype of activations; parameters, statistics and logits stay float32.
    c.dtype = "float32"
    # Of depthwise convolutions and transitions: auto, conv, shift. Changes speed alone.
    c.lowering = "auto"

    # Optimization: sgd (Nesterov momentum), adam, adamw, rmsprop or lion.
    c.optimizer = "sgd"
    # Peak learning rate; unset: what suits the optimizer and the batch size.
    c.learning_rate = config_dict.placeholder(float)
    # Decay of the gradient's running mean: sgd and rmsprop momentum, beta1 of others.
    c.momentum = 0.9
    # Decoupled decay of kernels, times the learning rate; unset: what suits.
    c.weight_decay = config_dict.placeholder(float)
    # Shape of the learning rate over the run: cosine, onecycle, step, exponential,
    # constant or plateau (lowered when the validation loss no longer falls).
    c.schedule = "cosine"
    # Epochs over which the learning rate rises linearly from zero; unset: a twentieth
    # of the run, a quarter with onecycle.
    c.warmup_epochs = config_dict.placeholder(float)
    # With plateau: by what the learning rate is multiplied,
    c.plateau_factor = 0.2
    # after how many epochs without a lower validation loss.
    c.plateau_patience = 5
    # Gradients of a larger norm are scaled down to it; 0: off.
    c.clip_norm = 0.0
    # Decay of a running average of the weights, which then is evaluated; 0: off.
    c.ema_decay = 0.0
    # Images per training step.
    c.batch_size = 128
    # Passes over the training images.
    c.num_epochs = 100
    # Epochs without a better validation accuracy after which a run ends; then its best
    # epoch is evaluated, not its last; 0: off.
    c.early_stopping = 0
    # By how much more an accuracy must be better, as a share of 1.
    c.min_change = 0.001

    # Program. Draws the initial weights, the order, augmentation and dropout.
    c.seed = 0
    # Training steps per program that is sent to the device; unset: 1 on CPU, else 16.
    c.steps_per_dispatch = config_dict.placeholder(int)
    # Images per evaluation step; changes speed alone.
    c.eval_batch_size = 512
    # cpu, gpu or tpu; unset: the best that jax finds.
    c.platform = config_dict.placeholder(str)
    # Have a GPU compute the same bits each time, and more slowly; a CPU always does.
    c.deterministic = False
    # Write TensorBoard events.
    c.tensorboard = False
    # Progress bar; off: one line per epoch.
    c.progress = True

    # A comparison, which --mode=compare alone reads.
    c.compare = ml_collections.ConfigDict()
    # What is compared; dwsep_jax/compare/variants.py says what each name stands for.
    c.compare.variants = (
        "separable",
        "standard",
        "separable_parameters",
        "separable_macs",
    )
    # Runs of each variant, with the seeds from `seed` on.
    c.compare.num_seeds = 5
    # Each variant is trained at the multiple of the learning rate that validates best.
    c.compare.rate_factors = (1 / 3, 1.0, 3.0)
    # Percentage points of test accuracy that a variant may lose without being worse.
    c.compare.margin = 0.5
    # Runs of a variant that are trained in one program and share its time; unset: 1 on
    # CPU, where more gain nothing, else all.
    c.compare.members_at_once = config_dict.placeholder(int)

    # A sweep, which --mode=sweep alone reads.
    c.sweep = ml_collections.ConfigDict()
    # The axes to search, each FIELD=A|B|..., FIELD=LOW..HIGH or FIELD=LOW..HIGH log,
    # where FIELD is any field of a run. An x before the numbers makes them multiples of
    # the learning rate that suits the optimizer and the batch size.
    c.sweep.space = (
        "activation=relu|leaky_relu|swish",
        "optimizer=adam|rmsprop|sgd",
        "learning_rate=x0.1..x10 log",
        "batch_size=32|64|128|256",
        "dropout_rate=0..0.3",
    )
    # What chooses the next trial: tpe, random or grid.
    c.sweep.sampler = "tpe"
    # What stops hopeless trials early, on validation: median, halving or none.
    c.sweep.pruner = "median"
    # Trials in all; unset: 24, or the points of the grid.
    c.sweep.num_trials = config_dict.placeholder(int)
    # Runs of the best trials, with the seeds after `seed`.
    c.sweep.num_seeds = 5
    # A database's URL (config.json shows it, so keep the password elsewhere), or a file
    # *.journal or *.log on a disk that workers share; unset: study.db in the workdir.
    c.sweep.storage = config_dict.placeholder(str)
    # Name of the study in the storage.
    c.sweep.study = "sweep"
    # As `compare.members_at_once`, for the runs of one of the best trials.
    c.sweep.members_at_once = config_dict.placeholder(int)
    return c
