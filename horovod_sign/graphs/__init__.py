"""TensorFlow's tensors to bit planes, and back, in graphs: what knows TensorFlow, and nothing of who carries votes.

`horovod_sign.tensorflow`, over Horovod, is made of it.
"""
