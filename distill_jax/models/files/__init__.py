"""Weights in files, on a disk or in a bucket: our model folders, PyTorch's files, safetensors.

    model_folder         save and load a vision model of ours
    state_dict           the arrays of a PyTorch checkpoint in any of its formats
    torch_pickle           the pickles in it, read without executing them
    pytorch              names and layouts of public PyTorch implementations, to ours
    safetensors_writer   writes tensor by tensor
    safetensors_ranges   reads parts of tensors from a bucket

Reading never executes anything that a file holds.
"""
