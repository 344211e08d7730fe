"""Every field, with its default. The other files override a few of them."""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """Return the default configuration: the separable network on CIFAR-10."""
    c = ml_collections.ConfigDict()
    set_data(c)
    set_network(c)
    set_optimization(c)
    set_program(c)
    c.compare = get_comparison()
    c.sweep = get_sweep()
    return c


def set_data(c: ml_collections.ConfigDict) -> None:
    """Set the fields of the dataset and of augmentation."""
    # digits; a TFDS name: cifar10, cifar100, svhn_cropped, ...; or one's own: a folder
    # with train/<class>/*.png, or an .npz.
    c.dataset = "cifar10"
    # The feature of a TFDS dataset that is the class, where it has several: of cifar100
    # fine or coarse.
    c.label = "label"
    # Resize images: the shorter side to this many pixels, then cut out the center;
    # unset: as they are.
    c.image_size = config_dict.placeholder(int)
    # TFDS directory; unset: $TFDS_DATA_DIR, else TFDS's default.
    c.data_dir = config_dict.placeholder(str)
    # Images held out of `train`, stratified by class; for `test` as many, where one's
    # own data have none.
    c.validation_size = 5000
    # Seed for drawing them, the same for all runs.
    c.split_seed = 0
    # Mirror left to right with probability 1/2.
    c.flip = True
    # Shift by up to this many pixels each way, zero-padded.
    c.shift = 4
    # Side of the square that cutout erases, in pixels; 0: off.
    c.cutout = 0
    # Beta(a, a) parameter of mixup; 0: off.
    c.mixup = 0.0
    # Fraction of each label that is spread over all classes; 0: off.
    c.label_smoothing = 0.0
    # Weights of the classes in the training loss: none, balanced (N / (K * images of
    # the class)), or numbers by name, others 1: cat=2,dog=0.5.
    c.class_weights = "none"


def set_network(c: ml_collections.ConfigDict) -> None:
    """Set the fields of the network."""
    # The convolution in the dense blocks: separable or standard.
    c.conv = "separable"
    # Channels that each dense layer adds.
    c.growth_rate = 24
    # Dense layers in each block.
    c.block_sizes = (6, 6, 6, 6)
    # Width of a 1x1 convolution at the start of each layer, in growth rates; 0: none.
    c.bottleneck = 0
    # Fraction of the channels that a transition keeps.
    c.reduction = 0.5
    # Channels of the stem, in growth rates.
    c.stem_width = 2.0
    # Stride of the stem: 1, or 2 to work at half the resolution.
    c.stem_stride = 1
    # Side of the convolution kernels in the stem and the dense blocks.
    c.kernel_size = 3
    # relu, leaky_relu, swish or gelu.
    c.activation = "relu"
    # Batch norm between depthwise and pointwise convolution.
    c.inner_norm = False
    # Activation between depthwise and pointwise convolution.
    c.inner_activation = False
    # Dropout rate after each dense layer, rounded to 1/256.
    c.dropout_rate = 0.1
    # Weight of the old value in the running batch statistics.
    c.norm_momentum = 0.9
    # Dtype of activations; parameters, statistics and logits stay float32.
    c.dtype = "float32"
    # How convolutions are computed, in the stem and transitions, too: auto, conv or
    # shift. Affects speed only.
    c.lowering = "auto"


def set_optimization(c: ml_collections.ConfigDict) -> None:
    """Set the fields of the optimizer, its schedule and the length of the run."""
    # sgd (Nesterov momentum), adam, adamw, rmsprop or lion.
    c.optimizer = "sgd"
    # Peak learning rate; unset: chosen by optimizer and batch size.
    c.learning_rate = config_dict.placeholder(float)
    # Momentum of sgd and rmsprop; beta1 of the others.
    c.momentum = 0.9
    # Decoupled weight decay of kernels, times the learning rate; unset: chosen by
    # optimizer.
    c.weight_decay = config_dict.placeholder(float)
    # Shape of the learning rate over the run: cosine, onecycle, step, exponential,
    # constant or plateau (lowered when the validation loss stops falling).
    c.schedule = "cosine"
    # Epochs of linear warm-up from zero; unset: a twentieth of the run, or a quarter
    # with onecycle.
    c.warmup_epochs = config_dict.placeholder(float)
    # The plateau schedule multiplies the learning rate by `plateau_factor` after
    # `plateau_patience` epochs without a lower validation loss.
    c.plateau_factor = 0.2
    c.plateau_patience = 5
    # Maximum norm of the gradients; larger ones are scaled down; 0: off.
    c.clip_norm = 0.0
    # Decay of a moving average of the weights, which is then evaluated; 0: off.
    c.ema_decay = 0.0
    # Images per training step.
    c.batch_size = 128
    # Passes over the training images.
    c.num_epochs = 100
    # Workdir of a run, or file of safetensors, whose trained weights to start from;
    # unset: start at random.
    c.init_from = config_dict.placeholder(str)
    # Parameters that are not trained, as patterns of their names: stem/*,block0/*.
    c.freeze = config_dict.placeholder(str)
    # Stop after this many epochs without a better validation accuracy, and evaluate the
    # best epoch instead of the last; 0: off.
    c.early_stopping = 0
    # Smallest difference in accuracy (0 to 1) that counts as better.
    c.min_change = 0.001


def set_program(c: ml_collections.ConfigDict) -> None:
    """Set the seed, and the fields of the machine and of the output."""
    # Seed for initial weights, order of examples, augmentation and dropout.
    c.seed = 0
    # Training steps per dispatch to the device; unset: 1 on CPU, else 16.
    c.steps_per_dispatch = config_dict.placeholder(int)
    # Images per evaluation step; affects speed only.
    c.eval_batch_size = 512
    # Save within an epoch, too, after so many minutes without a checkpoint; 0: off.
    c.checkpoint_minutes = 10.0
    # Compute the inside of dense layers again in the backward pass, to save memory.
    c.remat = False
    # Parts of a batch that are computed one after the other, to save memory.
    c.accumulate = 1
    # Devices that share each batch, of all processes; unset: all accelerators, one CPU
    # of each process.
    c.num_devices = config_dict.placeholder(int)
    # host:port of process 0, the number of processes that train together, and which of
    # them this is, from 0; unset: as SLURM, Open MPI or a TPU pod says, else one alone.
    c.coordinator_address = config_dict.placeholder(str)
    c.num_processes = config_dict.placeholder(int)
    c.process_id = config_dict.placeholder(int)
    # cpu, gpu or tpu; unset: the best that JAX finds.
    c.platform = config_dict.placeholder(str)
    # Reproduce results bit for bit on a GPU, more slowly; a CPU always does.
    c.deterministic = False
    # Write TensorBoard events.
    c.tensorboard = False
    # Log to Weights & Biases, to MLflow; each is an extra of this package.
    c.wandb = False
    c.mlflow = False
    # Show a progress bar; off: one line per epoch.
    c.progress = True


def get_comparison() -> ml_collections.ConfigDict:
    """Return the section `compare`, which only --mode=compare uses."""
    c = ml_collections.ConfigDict()
    # Variants to compare; they are defined in dwsep_jax/compare/variants.py.
    c.variants = ("separable", "standard", "separable_parameters", "separable_macs")
    # Runs of each variant; their seeds start at `seed`.
    c.num_seeds = 5
    # Multiples of the learning rate to try; each variant uses the one that does best on
    # validation.
    c.rate_factors = (1 / 3, 1.0, 3.0)
    # Difference in test accuracy that does not matter, in percentage points.
    c.margin = 0.5
    # Runs of a variant to train in one program; unset: 1 on CPU, where more is no
    # faster, else all.
    c.members_at_once = config_dict.placeholder(int)
    return c


def get_sweep() -> ml_collections.ConfigDict:
    """Return the section `sweep`, which only --mode=sweep uses."""
    c = ml_collections.ConfigDict()
    # The axes to search, each FIELD=A|B|..., FIELD=LOW..HIGH or FIELD=LOW..HIGH log,
    # where FIELD is any field of a run. An x before the numbers makes them multiples of
    # the learning rate chosen by optimizer and batch size.
    c.space = (
        "activation=relu|leaky_relu|swish",
        "optimizer=adam|rmsprop|sgd",
        "learning_rate=x0.1..x10 log",
        "batch_size=32|64|128|256",
        "dropout_rate=0..0.3",
    )
    # How trials are chosen: tpe, random or grid.
    c.sampler = "tpe"
    # How poor trials are stopped early, by validation: median, halving or none.
    c.pruner = "median"
    # Number of trials; unset: 24, or all points of the grid.
    c.num_trials = config_dict.placeholder(int)
    # Final runs of the best trials; their seeds follow `seed`.
    c.num_seeds = 5
    # Epochs of the final runs; unset: as many as their trials had.
    c.refit_epochs = config_dict.placeholder(int)
    # URL of a database (without a password: config.json shows it), or a file *.journal
    # or *.log on a disk that workers share; unset: study.db in the workdir.
    c.storage = config_dict.placeholder(str)
    # Name of the study in the storage.
    c.study = "sweep"
    # As `compare.members_at_once`, for the final runs of a trial.
    c.members_at_once = config_dict.placeholder(int)
    return c
