"""Datasets as TFDS lays them out on disk, written and read without TensorFlow."""
